"""The paper's figures 11 and 12: one text with four envelopes, one envelope with several texts."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from foley import clip
from foley.envelope import Floats, measure
from foley.options import GenerateOptions
from foley_bench.quality.timbre import spectrogram_db
from foley_pipeline.progress import OnProgress, ignore_progress
from foley_pipeline.request import EnvelopeInput, GenerationRequest
from foley_pipeline.triton_backend import TritonBackend
from foley_training.data.caption import plain_caption
from foley_training.data.scene import MATERIALS

SECONDS = 5.0
TEXT = plain_caption("gravel", "scratch")  # of figure 11: a sound that can last
_FRAMES = round(SECONDS * clip.ENVELOPE_RATE_HZ)
_LOUD, _QUIET = 0.15, 0.01  # RMS
_EDGE_S = 0.25  # of silence at both ends of figure 11's envelopes
_HITS = ((0.5, 1.0), (1.2, 0.5), (1.9, 0.8), (2.4, 0.4), (3.3, 1.0))  # seconds and strength, of figure 12's
_DECAY_S = 0.12


def shapes() -> dict[str, Floats]:
    """Return figure 11's envelopes, [500] at 100 Hz."""
    return {
        "A shape": _shape(_QUIET, _LOUD, _QUIET),
        "falling": _shape(_LOUD, (_LOUD + _QUIET) / 2, _QUIET),
        "rising": _shape(_QUIET, (_LOUD + _QUIET) / 2, _LOUD),
        "V shape": _shape(_LOUD, _QUIET, _LOUD),
    }


def hits() -> Floats:
    """Return figure 12's envelope: five hits of different strength, [500] at 100 Hz."""
    time_s = np.arange(_FRAMES) / clip.ENVELOPE_RATE_HZ
    since_s = time_s - np.array([[start_s] for start_s, _ in _HITS])
    strength = np.array([[strength] for _, strength in _HITS])
    decays = np.where(since_s >= 0, strength * np.exp(-np.maximum(since_s, 0) / _DECAY_S), 0)
    return (_LOUD * decays.max(0)).astype(np.float32)


def make(backend: TritonBackend, folder: Path, progress: OnProgress = ignore_progress) -> None:
    """Write `figure11.png`, `figure12.png` and a WAV of 5 s for each of their columns into `folder`, which exists.

    All use the bundle's default sampling, the default loudness and seed 0; the recipe in a file records the settings.
    """
    four = {name: (envelope, TEXT) for name, envelope in shapes().items()}
    _figure(backend, four, f'Figure 11: "{TEXT}" with four envelopes', folder / "figure11", progress)
    texts: dict[str, tuple[Floats, str]] = {
        material: (hits(), plain_caption(material, "hit")) for material in MATERIALS
    }
    _figure(
        backend,
        texts,
        'Figure 12: "A person hits … with a wooden stick." with one envelope',
        folder / "figure12",
        progress,
    )


def _figure(
    backend: TritonBackend, columns: Mapping[str, tuple[Floats, str]], title: str, stem: Path, progress: OnProgress
) -> None:
    figure = Figure(figsize=(3.2 * len(columns), 5), layout="constrained")
    curves, spectrograms = figure.subplots(2, len(columns), sharex=True, sharey="row", height_ratios=(2, 3))
    for i, (name, (envelope, text)) in enumerate(columns.items()):
        given = EnvelopeInput(envelope, _FRAMES * clip.HOP)
        request = GenerationRequest(envelope=given, options=GenerateOptions(text=text))
        result = backend.generate(request, progress=progress)
        result.save(stem.with_name(f"{stem.name}-{name.replace(' ', '-').lower()}.wav"))
        time_s = np.arange(_FRAMES) / clip.ENVELOPE_RATE_HZ
        curves[i].plot(time_s, envelope, label="requested", color="#ff9f1c")
        curves[i].plot(time_s, measure(result.waveform), label="produced", color="#2ec4b6")
        curves[i].set_title(name)
        picture = spectrogram_db(result.waveform).T
        spectrograms[i].imshow(
            picture, origin="lower", aspect="auto", extent=(0, SECONDS, 0, clip.MEL_BINS), cmap="magma"
        )
        spectrograms[i].set_xlabel("time (s)")
    curves[0].set_ylabel("RMS")
    spectrograms[0].set_ylabel("mel band")
    curves[-1].legend(loc="upper right")
    figure.suptitle(title)
    figure.savefig(stem.with_suffix(".png"), dpi=100)


def _shape(first: float, middle: float, last: float) -> Floats:
    time_s = np.arange(_FRAMES) / clip.ENVELOPE_RATE_HZ
    start, end = _EDGE_S, SECONDS - _EDGE_S
    line = np.interp(time_s, (start, (start + end) / 2, end), (first, middle, last), left=0, right=0)
    return line.astype(np.float32)
