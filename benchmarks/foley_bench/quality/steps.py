"""Steps against quality: the same clips and seeds with every sampler and fewer and fewer steps."""

import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich import box
from rich.table import Table

from foley import __version__
from foley.bundle import Bundle
from foley.envelope import Floats
from foley.sampler import SamplerName
from foley_bench.quality import clips
from foley_bench.quality.rms2sound import generate
from foley_bench.quality.timbre import spectrogram_db
from foley_bench.quality.truth import conditions, hear, listen, scores, seeded
from foley_client import Foley, Watch, embedded_triton

Setting = tuple[SamplerName, int]

SETTINGS: tuple[Setting, ...] = (
    *(("ddim", steps) for steps in (200, 50, 25, 10)),
    *(("dpm++", steps) for steps in (25, 15, 10, 8, 5)),
)
"""The first is the official one, which the others are measured against (but for its fresh noise, eta: 0 here)."""

_COLUMNS = {
    "event_l1": "E-L1 ↓",
    "envelope_correlation": "correlation ↑",
    "material_accuracy": "material ↑",
    "clap_score": "CLAP score ↑",
    "frechet_distance": "Fréchet distance ↓",
    "mel_distance_db": "mel distance (dB) ↓",
    "seconds": "s a clip ↓",
}


def measure_steps(
    bundle: Bundle, count: int, seed: int, watch: Watch, settings: Sequence[Setting] = SETTINGS
) -> dict[str, Any]:
    """Sounds from text on true envelopes with each of `settings`: the JSON document.

    `mel_distance_db` is the mean difference of log-mel spectrograms, 60 dB deep, to the first setting's. `seconds` is
    the time for all clips, divided by their number: throughput, with several under way.
    """
    scenes = clips.scenes("test", count, seed)
    rows = []
    reference: list[Floats] = []
    with embedded_triton(bundle.root) as triton:
        truth = listen(triton, scenes, seed, watch)
        wanted = conditions(truth, "text")
        defaults = Foley(triton).defaults
        for sampler, steps in settings:
            samplings = seeded(replace(defaults, sampler=sampler, steps=steps, eta=0.0), count)
            generated = generate(triton, wanted, samplings)
            with watch.stage(f"{sampler}, {steps} steps", count) as stage, closing(generated):
                waveforms = []
                started = time.perf_counter()
                for waveform in generated:
                    waveforms.append(waveform)
                    stage.advance()
                seconds = (time.perf_counter() - started) / count
            mels = [spectrogram_db(waveform) for waveform in waveforms]
            reference = reference or mels
            distance = np.mean([np.abs(mel - other).mean() for mel, other in zip(mels, reference, strict=True)])
            figures = scores([hear(triton, waveform) for waveform in waveforms], truth)
            rows.append(
                {"sampler": sampler, "steps": steps, **figures, "mel_distance_db": float(distance), "seconds": seconds}
            )
        versions = {"foley": __version__, **triton.versions}
    return {"clips": count, "seed": seed, "guidance": defaults.guidance, "versions": versions, "rows": rows}


def table(figures: Mapping[str, Any]) -> Table:
    """The document for people."""
    versions = figures["versions"]
    shown = Table(
        box=box.SIMPLE_HEAD,
        title="Steps against quality",
        caption=f"{figures['clips']} test clips, seed {figures['seed']}, text prompts, true envelopes, guidance "
        f"{figures['guidance']:g}, the same noise in every row. Mel distance: to the first row. "
        f"Bundle {versions['bundle']} ({versions['bundle_sha256'][:12]}).",
        caption_justify="left",
    )
    shown.add_column("sampler", no_wrap=True)
    for heading in ("steps", *_COLUMNS.values()):
        shown.add_column(heading, justify="right", vertical="bottom")
    for row in figures["rows"]:
        shown.add_row(row["sampler"], str(row["steps"]), *(f"{row[key]:.4f}" for key in _COLUMNS))
    return shown


def draw(figures: Mapping[str, Any], destination: Path) -> None:
    """Every column over the number of steps, a line a sampler: a PNG."""
    figure = Figure(figsize=(14, 6), layout="constrained")
    for axes, (key, heading) in zip(figure.subplots(2, 4).flat, _COLUMNS.items(), strict=False):
        for sampler in dict.fromkeys(row["sampler"] for row in figures["rows"]):
            points = [(row["steps"], row[key]) for row in figures["rows"] if row["sampler"] == sampler]
            axes.plot(*zip(*points, strict=True), marker="o", label=sampler)
        axes.set(title=heading, xlabel="steps", xscale="log")
        axes.set_xticks((5, 10, 25, 50, 200), labels=("5", "10", "25", "50", "200"), minor=False)
        axes.minorticks_off()
    figure.axes[-1].set_axis_off()
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower right", ncols=2)
    figure.savefig(destination, dpi=120, format="png")
