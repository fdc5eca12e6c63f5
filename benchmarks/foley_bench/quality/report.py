"""Tables of an evaluation, like the paper's I, II and IV, and the targets."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from foley_bench.quality.ground_truth import PROMPTS
from foley_bench.quality.video2rms import TOLERANCES
from foley_bench.report import table

Figures = Mapping[str, Any]

F1, F1_HELD_OUT = 0.9, 0.75
L1_RATIO = 0.25
CORRELATION = 0.9
MATERIALS = 0.8


@dataclass(frozen=True)
class Target:
    """A target of the trained bundle."""

    what: str
    required: str
    measured: float
    met: bool


def targets(figures: Figures) -> Iterator[Target]:
    """Yield every target that applies to `figures`, the JSON document; some need the regression baseline."""
    stage = figures["video2rms"]
    baseline = stage["regression"]
    for column, value in stage["classification"].items():
        if (minimum := baseline[column]) is not None:
            below = column == "event_l1"
            required = f"{'<' if below else '>'} {minimum:.4f} (regression)"
            yield Target(f"classification {column}", required, value, value < minimum if below else value > minimum)
    yield _at_least("onset F1 ±50 ms", stage["onset"]["f1_50ms"], F1)
    yield _at_least("onset F1 ±50 ms, held-out style", stage["onset"]["f1_50ms_heldout_style"], F1_HELD_OUT)
    for prompt in PROMPTS:
        sound = figures["rms2sound"][prompt]
        ratio = sound["event_l1"] / sound["event_l1_without_control"]
        yield Target(f"{prompt}: E-L1 with / without control", f"≤ {L1_RATIO}", ratio, ratio <= L1_RATIO)
        yield _at_least(f"{prompt}: envelope correlation", sound["envelope_correlation"], CORRELATION)
        yield _at_least(f"{prompt}: material recognised", sound["material_accuracy"], MATERIALS)


def _at_least(what: str, measured: float, minimum: float) -> Target:
    return Target(what, f"≥ {minimum}", measured, measured >= minimum)


def tables(figures: Figures) -> list[Table]:
    """Return tables of Video2RMS (the paper's I), onsets (part of IV), RMS2Sound (II and IV), and the targets."""
    return [_video2rms(figures), _onsets(figures), _rms2sound(figures), _targets(figures)]


def _video2rms(figures: Figures) -> Table:
    stage = figures["video2rms"]
    rows = {
        "classification": stage["classification"],
        "regression": stage["regression"],
        "classification, held-out style": stage["classification_heldout_style"],
    }
    headings = ["E-L1 ↓", *(f"acc. ±{tolerance} ↑" for tolerance in TOLERANCES)]
    keys = ["event_l1", *(f"accuracy_pm{tolerance}" for tolerance in TOLERANCES)]
    caption = (
        f"{figures['clips']} test clips of 10 s, equally many in the held-out style, seed {figures['seed']}; 125 "
        "frames per second; truth: RMS 512/128 of the real sound, low-passed. Accuracy in 64 loudness classes, without "
        "frames that are silent in both."
    )
    return _table("Video2RMS", headings, {name: _row(row, keys) for name, row in rows.items()}, caption)


def _onsets(figures: Figures) -> Table:
    onset, ceiling = figures["video2rms"]["onset"], figures["video2rms"]["onset_of_true_classes"]
    keys = ["accuracy", "ap", "f1_50ms"]
    rows = {
        "predicted envelope": _row(onset, keys),
        "predicted, held-out style": _row(onset, [f"{key}_heldout_style" for key in keys]),
        "true classes (upper limit)": _row(ceiling, keys),
    }
    caption = (
        f"{figures['contacts']} contacts. Accuracy and AP as in CondFoleyGen: ±0.1 s, non-maximum suppression within "
        "50 ms; F1: one-to-one matching. The detector was fitted to true classes of validation clips."
    )
    return _table("Onsets", ["accuracy ↑", "AP ↑", "F1 ±50 ms ↑"], rows, caption)


def _rms2sound(figures: Figures) -> Table:
    keys = [
        "event_l1",
        "event_l1_without_control",
        "event_l1_level",
        "envelope_correlation",
        "material_accuracy",
        "clap_score",
        "frechet_distance",
    ]
    headings = [
        "E-L1 ↓",
        "without\ncontrol",
        "at default\nloudness",
        "correlation ↑",
        "material ↑",
        "CLAP\nscore ↑",
        "Fréchet\ndist. ↓",
    ]
    rows = {f"{prompt} prompt": _row(figures["rms2sound"][prompt], keys) for prompt in PROMPTS}
    rows["real sounds"] = _row(figures["rms2sound"]["real"], keys)
    sampling = figures["sampling"]
    versions = figures["versions"]
    caption = (
        f"True envelopes; {sampling['sampler']}, {sampling['steps']} steps, guidance {sampling['guidance']:g}, seed i "
        "for clip i. E-L1 and correlation of the raw output, RMS 1024/160. Material: recognised by a classifier "
        "trained on other real sounds. CLAP score and Fréchet distance use the bundle's CLAP: compare within a bundle "
        "only. The real sounds' distance is to equally many other real sounds. "
        f"Bundle {versions['bundle']} ({versions['bundle_sha256'][:12]})."
    )
    return _table("RMS2Sound", headings, rows, caption)


def _targets(figures: Figures) -> Table:
    found = list(targets(figures))
    rows = {one.what: [one.required, f"{one.measured:.4f}", "✓" if one.met else "✗"] for one in found}
    missed = sum(not one.met for one in found)
    summary = f"{missed} of {len(found)} targets are missed." if missed else f"All {len(found)} targets are met."
    return _table("Targets", ["required", "measured", ""], rows, summary)


def _row(values: Figures, keys: Sequence[str]) -> list[str]:
    """Format values with four decimals; a dash if there is no value."""
    return ["–" if (value := values.get(key)) is None else f"{value:.4f}" for key in keys]


def _table(title: str, headings: Sequence[str], rows: Mapping[str, Sequence[str]], caption: str) -> Table:
    return table(title, ["", *headings], [[name, *cells] for name, cells in rows.items()], caption)
