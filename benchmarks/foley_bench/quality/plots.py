"""Plots of an evaluation."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.metrics import ConfusionMatrixDisplay

from foley import clip
from foley.envelope import Floats
from foley_bench.quality.evaluation import Evaluation
from foley_bench.quality.ground_truth import PROMPTS
from foley_training.data.scene import MATERIALS

SHOWN = 6  # clips in a picture, the first ones, not selected
TRUE, FIRST, SECOND = "#ff9f1c", "#2ec4b6", "#8d6a9f"


def draw(evaluation: Evaluation, folder: Path) -> None:
    """Write `video2rms.png`, `rms2sound.png` and `materials.png` into `folder`, which exists."""
    _video2rms(evaluation).savefig(folder / "video2rms.png", dpi=120)
    _rms2sound(evaluation).savefig(folder / "rms2sound.png", dpi=120)
    _materials(evaluation).savefig(folder / "materials.png", dpi=120)


def _video2rms(evaluation: Evaluation) -> Figure:
    curves = evaluation.curves
    figure = Figure(figsize=(12, 9), layout="constrained")
    for i, axes in _rows(figure, len(curves.true)):
        for contact_s in curves.contacts_s[i]:
            axes.axvline(contact_s, color="0.85")
        _plot(axes, curves.true[i], clip.CLASS_RATE_HZ, "true", TRUE)
        _plot(axes, curves.classified[i], clip.CLASS_RATE_HZ, "classification", FIRST)
        if curves.regressed is not None:
            _plot(axes, curves.regressed[i], clip.CLASS_RATE_HZ, "regression", SECOND)
        axes.set_ylabel(evaluation.ground_truth.materials[i])
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=3)
    figure.suptitle("Envelopes of the first test clips; grey: contacts", x=0.01, ha="left")
    return figure


def _rms2sound(evaluation: Evaluation) -> Figure:
    sounds = evaluation.ground_truth.sounds
    figure = Figure(figsize=(12, 9), layout="constrained")
    for i, axes in _rows(figure, len(sounds)):
        _plot(axes, sounds[i].envelope, clip.ENVELOPE_RATE_HZ, "requested", TRUE)
        for prompt, colour in zip(PROMPTS, (FIRST, SECOND), strict=True):
            _plot(axes, evaluation.generated[prompt][i].envelope, clip.ENVELOPE_RATE_HZ, f"from {prompt}", colour)
        axes.set_ylabel(evaluation.ground_truth.materials[i])
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=3)
    figure.suptitle("Requested and produced envelopes, raw output", x=0.01, ha="left")
    return figure


def _materials(evaluation: Evaluation) -> Figure:
    ground_truth = evaluation.ground_truth
    figure = Figure(figsize=(13, 4.5), layout="constrained")
    judged = {"real": ground_truth.sounds, **{f"from {prompt}": evaluation.generated[prompt] for prompt in PROMPTS}}
    for axes, (name, sounds) in zip(figure.subplots(1, len(judged)), judged.items(), strict=True):
        recognised = ground_truth.classifier.predict([sound.timbre for sound in sounds])
        ConfusionMatrixDisplay.from_predictions(
            ground_truth.materials, recognised, labels=MATERIALS, ax=axes, colorbar=False, xticks_rotation="vertical"
        )
        axes.set(title=name, xlabel="recognised", ylabel="prompted")
    return figure


def _rows(figure: Figure, count: int) -> Iterator[tuple[int, Axes]]:
    rows = min(SHOWN, count)
    for i, axes in enumerate(np.atleast_1d(figure.subplots(rows, sharex=True))):
        axes.margins(x=0)
        if i == rows - 1:
            axes.set_xlabel("time (s)")
        yield i, axes


def _plot(axes: Axes, values: Floats, rate_hz: int, label: str, colour: str) -> None:
    axes.plot(np.arange(len(values)) / rate_hz, values, label=label, color=colour, linewidth=1)
