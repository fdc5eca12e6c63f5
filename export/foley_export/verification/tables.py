"""Checks without a network: noise schedule, frames, envelopes, mel spectrogram, training targets, metrics."""

import numpy as np
import torch

from foley import clip, envelope, media, metrics, schedule
from foley.envelope_filter import low_pass
from foley_export import mel
from foley_export.networks import video2rms_loss
from foley_export.verification.check import Comparisons, TableCheck
from foley_export.verification.comparison import Comparison, exact, within_one_level
from foley_export.verification.vectors import Vectors

_STEPS, _ETAS = (200, 25, 4), (0, 1)
_FLOAT64 = 1e-9  # relative: SciPy versions differ in the last bits
_FEW_BYTES = 2e-4  # relative: one byte in 2,000, around 128, off by one level; ties round by order of operations


def _noise_schedule(vectors: Vectors) -> Comparisons:
    vector = vectors["ddim_tables"]
    yield exact("betas", schedule.betas().astype(np.float32), vector["betas"])
    yield exact("cumulative alphas", schedule.alphas_cumprod(), vector["alphas_cumprod"])


def _ddim_tables(vectors: Vectors) -> Comparisons:
    vector = vectors["ddim_tables"]
    for table in ("timesteps", "alphas", "alphas_prev", "sigmas"):
        for eta in _ETAS:
            ours = [getattr(schedule.ddim_tables(steps, eta), table) for steps in _STEPS]
            official = [vector[f"ddim_{table}_{steps}_eta{eta}"] for steps in _STEPS]
            what = f"{table}, eta {eta}, {', '.join(map(str, _STEPS))} steps"
            yield exact(what, np.concatenate(ours), np.concatenate(official))


def _measure(vectors: Vectors) -> Comparisons:
    vector = vectors["rms"]
    waveform = vector["waveform"]
    yield Comparison("RMS 512/128", envelope.measure(waveform, 512, 128), vector["rms_512_128"])
    padded = np.pad(waveform, (0, clip.PADDED_SAMPLES - len(waveform)))
    yield Comparison("RMS 1024/160", envelope.measure(padded), vector["rms_1024_160"])


def _classes(vectors: Vectors) -> Comparisons:
    vector = vectors["rms"]
    filtered = low_pass(vector["rms_512_128"])
    yield Comparison("zero-phase filter", filtered, vector["rms_filtered"], relative=_FLOAT64)
    yield exact("mu-law bins", envelope.mu_law_bins(), vector["mu_bins"])
    yield Comparison("mu-law value", envelope.mu_law(vector["rms_512_128"]), vector["mu_law_63"])
    classes = video2rms_loss.to_classes(filtered)
    yield exact("classes", classes, vector["classes"])
    yield exact("classes back to RMS", envelope.class_levels()[classes], vector["rms_from_classes"])


def _recording(vectors: Vectors) -> Comparisons:
    vector = vectors["envelope_from_audio"]
    rms = envelope.measure(vector["waveform"].astype(np.float32))
    yield Comparison("RMS 1024/160 of a recording", rms, vector["rms_1024_160"])
    yield Comparison("envelope of a recording, filtered", low_pass(rms)[None], vector["envelope"], relative=_FLOAT64)


def _frame_resize(vectors: Vectors) -> Comparisons:
    vector = vectors["frame_resize"]
    for size in ("larger", "smaller"):
        resized = np.stack([media.resize(frame) for frame in vector[f"{size}_frame"]])
        yield within_one_level(f"{size} frame at 344 x 256", resized, vector[f"{size}_resized"], relative=_FEW_BYTES)


def _mel(vectors: Vectors) -> Comparisons:
    vector = vectors["mel_frontend"]
    for suffix in ("", "_normalised"):
        waveform = torch.from_numpy(vector[f"waveform{suffix}"]).float()[None]
        log_mel = mel.log_mel(waveform)[0].numpy()
        yield Comparison(f"log-mel{suffix.replace('_', ', ')}", log_mel, vector[f"log_mel{suffix}"])
    yield Comparison("mel filters", mel.filters().T.numpy(), vector["mel_filters"])


def _smoothing(vectors: Vectors) -> Comparisons:
    vector = vectors["label_smoothing_and_metrics"]
    true = torch.from_numpy(vector["targets"])
    official, paper = (
        video2rms_loss.smooth_labels(true, smoothing=smoothing).numpy() for smoothing in ("official", "paper")
    )
    yield Comparison("Gaussian label smoothing, official code", official, vector["smoothed_official_code"])
    yield Comparison("Gaussian label smoothing, equation 3", paper[0], vector["smoothed_paper_eq3"])
    logits = torch.from_numpy(vector["logits"]).transpose(1, 2)
    loss = video2rms_loss.cross_entropy(logits, video2rms_loss.smooth_labels(torch.from_numpy(vector["classes"])))
    yield Comparison("cross-entropy", loss.numpy(), vector["cross_entropy_official_code"])


def _metrics(vectors: Vectors) -> Comparisons:
    vector = vectors["label_smoothing_and_metrics"]
    predicted, true = vector["logits"].argmax(1), vector["classes"]
    event_l1 = metrics.event_l1(envelope.class_levels()[predicted], vector["rms_continuous"])
    yield Comparison("Event-L1", np.array(event_l1), vector["event_l1"])
    for tolerance in (0, 2, 5, 8):
        accuracy = metrics.tolerant_accuracy(predicted, true, tolerance)
        yield Comparison(f"accuracy ±{tolerance}", np.array(accuracy), vector[f"accuracy_pm{tolerance}"])


CHECKS = (
    TableCheck("sampler", (_noise_schedule, _ddim_tables)),
    TableCheck("frames", (_frame_resize,)),
    TableCheck("envelope", (_measure, _classes, _recording)),
    TableCheck("mel", (_mel,), "torch"),
    TableCheck("video2rms_loss", (_smoothing,)),
    TableCheck("metrics", (_metrics,)),
)
