"""`foley-bench fidelity`: effects of the official pipeline's lossy steps, with seeded weights at the official size.

The figures of `docs/fidelity.md`. Random weights show how far a disturbance propagates, not how it sounds; trained
networks are more or less sensitive. Optical flow is OpenCV's DIS (Kroeger et al., ECCV 2016), because RAFT with random
weights finds no motion.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import torch

from foley import clip, loudness
from foley.dis_flow import DisFlow
from foley.envelope import Floats, measure
from foley.envelope_filter import low_pass
from foley.manifest import DisFlowConfig
from foley.media import read_frames
from foley.metrics import event_l1, relative_l2, tolerant_accuracy
from foley.sampler import LATENTS_SHAPE
from foley.schedule import alphas_cumprod
from foley.solvers import ddim, multistep
from foley_bench.baseline.images import Images, flow_through_jpeg, through_jpeg
from foley_export.networks.bn_inception import FlowFeatures, RgbFeatures
from foley_export.networks.clap_text import ClapText
from foley_export.networks.video2rms import Video2RMS
from foley_export.presets import PAPER
from foley_export.weights import fill
from foley_export.wiring import wire
from foley_pipeline.video2rms import clip_features

ENCODINGS = 3  # the official preparation encodes the video anew when it aligns, cuts and changes the frame rate
CRF = "23"  # of ffmpeg's libx264 when nothing is asked for
_BATCH = 16


@dataclass(frozen=True)
class Effect:
    """How much a figure changes."""

    what: str
    value: float
    unit: str


def measure_all(video: Path) -> Iterator[Effect]:
    """Yield every figure when it is measured; takes minutes, most of them in BN-Inception."""
    yield from video_side(video)
    yield text_padding()
    yield from peak_normalisation()
    yield from filtered_recordings()
    yield from samplers()


@torch.no_grad()
def video_side(video: Path) -> Iterator[Effect]:
    """Frames and flow through JPEG, and the video through three more encodings: features, classes, envelope."""
    rgb, flow_network = fill(RgbFeatures(PAPER)), fill(FlowFeatures(PAPER))
    seeded, wired = fill(Video2RMS(PAPER)), Video2RMS(PAPER).eval()
    wire(wired, rgb)

    def features(frames: Images, flow: Images) -> tuple[Floats, Floats]:
        return (
            _run(rgb.network, rgb.network_input, frames[1:]),
            _run(flow_network.network, flow_network.network_input, flow),
        )

    def rows(streams: tuple[Floats, Floats]) -> torch.Tensor:
        both = np.concatenate(streams, axis=1)
        return torch.from_numpy(clip_features(both, both[-1]))[None]

    dis = DisFlow(DisFlowConfig(preset="medium"))
    frames = np.stack(list(read_frames(video)))
    flow = dis.flow(frames)
    encoded = reencoded(video)
    encoded_flow = dis.flow(encoded)
    reference = features(frames, flow)
    variants = {
        "JPEG": (through_jpeg(frames), flow_through_jpeg(flow)),
        f"{ENCODINGS} x H.264": (encoded, encoded_flow),
        f"{ENCODINGS} x H.264, JPEG": (through_jpeg(encoded), flow_through_jpeg(encoded_flow)),
    }
    for name, (other_frames, other_flow) in variants.items():
        yield Effect(f"{name}: frames", _mean_difference(frames[1:], other_frames[1:]), "of 255, mean")
        yield Effect(f"{name}: flow", _mean_difference(flow, other_flow), "of 255, mean")
        other = features(other_frames, other_flow)
        for stream, before, after in zip(("RGB", "flow"), reference, other, strict=True):
            yield Effect(f"{name}: {stream} features", relative_l2(after, before), "relative L2")
            motion = before - before.mean(axis=0)  # a random network's features are mostly the same for every frame
            share = np.linalg.norm(after - before) / np.linalg.norm(motion)
            yield Effect(f"{name}: {stream} features", float(share), "of their change over time")
        for kind, network in {"seeded": seeded, "wired": wired}.items():
            (envelope, classes), (other_envelope, other_classes) = network(rows(reference)), network(rows(other))
            kept = [tolerant_accuracy(other_classes, classes, tolerance) for tolerance in (0, 2)]
            yield Effect(f"{name}: classes, {kind}", 1 - kept[0], "share changed")
            yield Effect(f"{name}: classes, {kind}", 1 - kept[1], "share changed by more than 2")
            change = event_l1(other_envelope, envelope) / envelope.mean().item()
            yield Effect(f"{name}: envelope, {kind}", change, "E-L1 / mean RMS")
        for kind, network in {"seeded": seeded, "wired": wired}.items() if name == "JPEG" else ():
            _, classes = network(rows(reference))
            yield Effect(f"for comparison: classes that {kind} weights use", len(classes.unique()), "of 64")


def reencoded(video: Path) -> Images:
    """The frames of `video` after as many encodings with H.264 as the official preparation makes."""
    with tempfile.TemporaryDirectory() as folder:
        for number in range(ENCODINGS):
            target = Path(folder) / f"{number}.mp4"
            with av.open(str(video)) as source, av.open(str(target), "w") as sink:
                decoded = source.streams.video[0]
                stream = sink.add_stream("libx264", decoded.average_rate, {"crf": CRF})
                stream.width, stream.height, stream.pix_fmt = decoded.width, decoded.height, "yuv420p"
                stream.bit_rate = 0  # PyAV's own choice would override the quality
                for frame in source.decode(decoded):
                    sink.mux(stream.encode(frame))
                sink.mux(stream.encode(None))
            video = target
        return np.stack(list(read_frames(video)))


@torch.no_grad()
def text_padding() -> Effect:
    """A text padded to 512 tokens, as officially, against the same text without padding."""
    network = fill(ClapText(PAPER))
    tokens = torch.tensor([[0, *range(100, 110), 2]])
    length = tokens.shape[1]
    padded = torch.nn.functional.pad(tokens, (0, 512 - length), value=1)
    mask = (torch.arange(512) < length).long()[None]
    short, long = network(tokens, mask[:, :length]), network(padded, mask)
    return Effect("text padded to 512 tokens: embedding", relative_l2(long.numpy(), short.numpy()), "relative L2")


def peak_normalisation() -> Iterator[Effect]:
    """Noise exactly on an envelope of three hits, at three levels: how far the official peak is from that level."""
    time_s = np.arange(clip.CLIP_ENVELOPE * clip.HOP) / clip.SAMPLE_RATE_HZ
    since_s = time_s - np.array([[1], [4], [7]])  # [hit, sample]
    hits = np.where(since_s >= 0, np.exp(-np.abs(since_s) / 0.15), 0).sum(0)
    noise = np.random.default_rng(0).standard_normal(len(time_s))
    for level_db in (-20, -40, -60):
        wave = (hits * noise * 10 ** (level_db / 20)).astype(np.float32)
        envelope = measure(wave)
        for mode in ("peak", "level"):
            result = measure(loudness.apply(wave, envelope, mode))
            error = 20 * np.log10(np.linalg.norm(result) / np.linalg.norm(envelope))
            yield Effect(f"hits at {level_db} dB, loudness {mode!r}", float(error), "dB off")


def filtered_recordings() -> Iterator[Effect]:
    """Noise that starts suddenly after 2 s and decays: how far the official filter moves its envelope."""
    since_s = np.arange(4 * clip.SAMPLE_RATE_HZ) / clip.SAMPLE_RATE_HZ - 2
    noise = np.random.default_rng(0).standard_normal(len(since_s))
    for decay_s in (0.05, 0.15, 0.5):
        rms = measure((noise * np.where(since_s >= 0, np.exp(-since_s / decay_s), 0)).astype(np.float32))
        filtered = low_pass(rms).astype(np.float32)
        onsets = [int(np.argmax(curve > 0.1 * curve.max())) for curve in (rms, filtered)]
        name = f"noise that decays in {decay_s} s, official filter"
        yield Effect(f"{name}: envelope", relative_l2(filtered, rms), "relative L2")
        yield Effect(f"{name}: onset", 1000 * (onsets[1] - onsets[0]) / clip.ENVELOPE_RATE_HZ, "ms later")


def samplers() -> Iterator[Effect]:
    """Error of the samplers alone, against 1000 DDIM steps, on a denoiser that is exact for a mixture of Gaussians."""
    random = np.random.default_rng(0)
    start = random.standard_normal(LATENTS_SHAPE, np.float32)
    means = random.standard_normal((6, LATENTS_SHAPE[0])).astype(np.float32)
    for spread in (0.3, 1.0):
        denoise = mixture_denoiser(means, spread)
        *_, exact = ddim(denoise, start, 1000)
        for steps in (25, 200):
            *_, result = ddim(denoise, start, steps)
            yield Effect(f"mixture of spread {spread}: ddim, {steps} steps", relative_l2(result, exact), "relative L2")
        for steps in (25, 50):
            *_, result = multistep(denoise, start, steps)
            yield Effect(f"mixture of spread {spread}: dpm++, {steps} steps", relative_l2(result, exact), "relative L2")


def mixture_denoiser(means: Floats, spread: float) -> Callable[[Floats, int], Floats]:
    """The noise that a perfect network predicts when every cell's 8 channels come from Gaussians around `means`."""
    cumprod = alphas_cumprod()

    def denoise(latents: Floats, timestep: int) -> Floats:
        alpha = float(cumprod[timestep])
        variance = alpha * spread**2 + 1 - alpha
        away = latents[None] - np.sqrt(alpha) * means[:, :, None, None]  # [mixture, 8, time, mel]
        scores = -np.square(away).sum(1) / (2 * variance)
        weights = np.exp(scores - scores.max(0))
        weights /= weights.sum(0)
        noise: Floats = (weights[:, None] * away).sum(0) * (np.sqrt(1 - alpha) / variance)
        return noise.astype(np.float32)

    return denoise


def _run(network: torch.nn.Module, prepare: Callable[[torch.Tensor], torch.Tensor], images: Images) -> Floats:
    batches: Sequence[Images] = [images[i : i + _BATCH] for i in range(0, len(images), _BATCH)]
    return np.concatenate([network(prepare(torch.from_numpy(batch))).numpy() for batch in batches])


def _mean_difference(reference: Images, other: Images) -> float:
    return float(np.abs(reference.astype(np.int16) - other).mean())
