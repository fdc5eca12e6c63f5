"""The stages of the official way, each as pieces of work that answer how many parts of the stage they were."""

import resource
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from foley import bundle as bundles
from foley import loudness
from foley.media import read_frames
from foley.stages import networks
from foley_bench.material import Images, Material, collect
from foley_bench.official import images, raft, sound
from foley_bench.part import Timing, timed
from foley_export.make import load_network

BATCH = 16  # pictures that BN-Inception sees at once


def measure(bundle: Path, video: Path, stage: str, whole: int, most: int) -> Timing:
    """Time a stage on `most` of its `whole` parts."""
    material, loaded = _material(bundle, video), bundles.read(bundle)
    network = load_network(loaded, stage) if stage in networks(loaded.manifest) else None
    with torch.inference_mode():
        return timed(lambda: WORK[stage](network, material), whole, most)


def peak_memory_bytes() -> int:
    """The most memory that this process has held at once."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@cache
def _material(bundle: Path, video: Path) -> Material:
    return collect(bundles.read(bundle), video)


def _decode(_: None, material: Material) -> Iterator[int]:
    for _frame in read_frames(material.video):
        yield 1


def _optical_flow(network: Any, material: Material) -> Iterator[int]:
    for first, second in pairwise(torch.from_numpy(material.frames)):
        raft.to_bytes(raft.pair_flow(network, first, second)).numpy()
        yield 1


def _jpeg(_: None, material: Material) -> Iterator[int]:
    with tempfile.TemporaryDirectory() as name:
        for frame, flow in zip(material.frames[1:], material.flow, strict=True):
            images.through_jpeg(frame, Path(name) / "img.jpg")
            images.flow_through_jpeg(flow, Path(name))
            yield 1


def _rgb_features(network: Any, material: Material) -> Iterator[int]:
    return _features(network.network, images.rgb_input, material.frames[1:])


def _flow_features(network: Any, material: Material) -> Iterator[int]:
    return _features(network.network, images.flow_input, material.flow)


def _features(network: Any, prepare: Callable[[Images], torch.Tensor], pictures: Images) -> Iterator[int]:
    for start in range(0, len(pictures), BATCH):
        batch = torch.stack([prepare(picture) for picture in pictures[start : start + BATCH]])
        network(batch).numpy()
        yield len(batch)


def _video2rms(network: Any, material: Material) -> Iterator[int]:
    network(torch.from_numpy(material.features))
    yield 1


def _clap_text(network: Any, material: Material) -> Iterator[int]:
    for tokens in material.tokens:
        sound.embed(network, tokens)
        yield 1


def _denoiser(network: Any, material: Material) -> Iterator[int]:
    conditions = (material.envelope, material.embedding, material.negative_embedding)
    for _latents in sound.denoise(network, *(torch.from_numpy(values)[None] for values in conditions)):
        yield 1


def _vae_decoder(network: Any, material: Material) -> Iterator[int]:
    network(torch.from_numpy(material.latents)[None])
    yield 1


def _vocoder(network: Any, material: Material) -> Iterator[int]:
    network(torch.from_numpy(material.mel)[None])
    yield 1


def _loudness(_: None, material: Material) -> Iterator[int]:
    loudness.apply(material.waveform, material.envelope, "peak")
    yield 1


WORK: Mapping[str, Callable[[Any, Material], Iterator[int]]] = {
    "decode": _decode,
    "optical_flow": _optical_flow,
    "jpeg": _jpeg,
    "rgb_features": _rgb_features,
    "flow_features": _flow_features,
    "video2rms": _video2rms,
    "clap_text": _clap_text,
    "denoiser": _denoiser,
    "vae_decoder": _vae_decoder,
    "vocoder": _vocoder,
    "loudness": _loudness,
}
