"""Speed against quality: the same clips and seeds with every switch of the diffusion loop that may change the sound."""

import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from rich import box
from rich.table import Table

from foley import __version__
from foley.bundle import Bundle
from foley.envelope import Floats
from foley_bench.quality import clips
from foley_bench.quality.rms2sound import generate
from foley_bench.quality.timbre import spectrogram_db
from foley_bench.quality.truth import conditions, hear, listen, scores, seeded
from foley_client import Foley, Watch, embedded_triton
from foley_pipeline.foley import override

Setting = Mapping[str, Any]
"""What is chosen in place of the bundle's sampling defaults: fields of `foley.sampler.Sampling`."""

GUIDANCE = 2.5  # where it is measured what less of it costs

SETTINGS: tuple[Setting, ...] = (
    *({"sampler": "ddim", "steps": steps} for steps in (200, 50, 25, 10)),
    *({"sampler": "dpm++", "steps": steps} for steps in (50, 25, 15, 10, 8, 5)),
    *({"sampler": "dpm++", "steps": steps, "spacing": "karras"} for steps in (25, 10)),
    *({"sampler": "dpm++", "steps": steps, "spacing": "log-snr"} for steps in (50, 25, 10)),
    {"sampler": "ddim", "steps": 200, "guidance": GUIDANCE},
    {"sampler": "dpm++", "steps": 25, "guidance": GUIDANCE},
    *(
        {"sampler": "dpm++", "steps": 25, "guidance": GUIDANCE, "guidance_interval": interval}
        for interval in ((0.0, 5.0), (0.3, 100.0), (0.3, 5.0), (1.0, 5.0))
    ),
    *(
        {"sampler": "dpm++", "steps": 10, "spacing": "log-snr", "guidance": GUIDANCE, "guidance_interval": interval}
        for interval in ((0.0, 100.0), (0.3, 100.0))
    ),
)
"""The first of every guidance is the official sampler (but for its fresh noise, eta: 0 here); the rows that have the
same guidance are measured against it."""

_COLUMNS = {
    "event_l1": "E-L1 ↓",
    "envelope_correlation": "correlation ↑",
    "material_accuracy": "material ↑",
    "clap_score": "CLAP score ↑",
    "frechet_distance": "Fréchet ↓",
    "mel_distance_db": "mel distance (dB) ↓",
    "waveform_distance": "waveform distance ↓",
    "seconds": "s a clip ↓",
    "speed_up": "times as fast ↑",
}


def measure_steps(
    bundle: Bundle, count: int, seed: int, watch: Watch, settings: Sequence[Setting] = SETTINGS
) -> dict[str, Any]:
    """Sounds from text on true envelopes with each of `settings`: the JSON document.

    Distances are to the first setting of the same guidance: `mel_distance_db` is the mean difference of log-mel
    spectrograms, 60 dB deep; `waveform_distance` the mean relative L2 distance of waveforms, at which 1.4 is a sound
    of the same loudness that has nothing to do with it. `seconds` is the time for all clips, divided by their number:
    throughput, with several under way; `speed_up` is the first setting's over it.
    """
    scenes = clips.scenes("test", count, seed)
    rows: list[dict[str, Any]] = []
    full: dict[float, tuple[list[Floats], float]] = {}  # by guidance: what is compared with
    with embedded_triton(bundle.root) as triton:
        truth = listen(triton, scenes, seed, watch)
        wanted = conditions(truth, "text")
        defaults = Foley(triton).defaults
        for setting in settings:
            sampling = override(defaults, setting)
            generated = generate(triton, wanted, seeded(sampling, count))
            with watch.stage(describe(setting), count) as stage, closing(generated):
                waveforms = []
                started = time.perf_counter()
                for waveform in generated:
                    waveforms.append(waveform)
                    stage.advance()
                seconds = (time.perf_counter() - started) / count
            reference, reference_s = full.setdefault(sampling.guidance, (waveforms, seconds))
            rows.append(
                {
                    "setting": {**setting, "guidance": sampling.guidance},
                    **scores([hear(triton, waveform) for waveform in waveforms], truth),
                    "mel_distance_db": _mean(_mel_distance_db, waveforms, reference),
                    "waveform_distance": _mean(_relative_l2, waveforms, reference),
                    "seconds": seconds,
                    "speed_up": reference_s / seconds,
                }
            )
        versions = {"foley": __version__, **triton.versions}
    return {"clips": count, "seed": seed, "guidance": defaults.guidance, "versions": versions, "rows": rows}


def describe(setting: Setting) -> str:
    """A setting in words: "dpm++, 25 steps, log-snr"."""
    words = [setting["sampler"], f"{setting['steps']} steps"]
    if "spacing" in setting:
        words.append(setting["spacing"])
    if "guidance" in setting:
        words.append(f"guidance {setting['guidance']:g}")
    if "guidance_interval" in setting:
        low, high = setting["guidance_interval"]
        words.append(f"from {low:g} to {high:g}")
    return ", ".join(words)


def table(figures: Mapping[str, Any]) -> Table:
    """The document for people."""
    versions = figures["versions"]
    shown = Table(
        box=box.SIMPLE_HEAD,
        title="Speed against quality",
        caption=f"{figures['clips']} test clips, seed {figures['seed']}, text prompts, true envelopes, the same noise "
        "in every row. Distances and speed-up: to the first row of the same guidance. "
        f"Bundle {versions['bundle']} ({versions['bundle_sha256'][:12]}).",
        caption_justify="left",
    )
    shown.add_column("setting", no_wrap=True)
    for heading in _COLUMNS.values():
        shown.add_column(heading, justify="right", vertical="bottom")
    for row in figures["rows"]:
        shown.add_row(describe(row["setting"]), *(f"{row[key]:.4f}" for key in _COLUMNS))
    return shown


def draw(figures: Mapping[str, Any], destination: Path) -> None:
    """Every figure of quality over the time of a clip; a colour a sampler, rings where more was changed: a PNG."""
    figure = Figure(figsize=(14, 7), layout="constrained")
    shown = [key for key in _COLUMNS if key not in ("seconds", "speed_up")]
    for axes, key in zip(figure.subplots(2, 4).flat, shown, strict=False):
        for number, sampler in enumerate(dict.fromkeys(row["setting"]["sampler"] for row in figures["rows"])):
            rows = [row for row in figures["rows"] if row["setting"]["sampler"] == sampler]
            for plain, face in ((True, f"C{number}"), (False, "none")):
                points = [(row["seconds"], row[key]) for row in rows if _is_plain(row["setting"], figures) == plain]
                if points:
                    label = sampler if plain else f"{sampler}, with a switch"
                    axes.scatter(*zip(*points, strict=True), label=label, facecolors=face, edgecolors=f"C{number}")
        axes.set(title=_COLUMNS[key], xlabel="seconds a clip", xscale="log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
    figure.axes[-1].set_axis_off()
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower right", ncols=3)
    figure.savefig(destination, dpi=120, format="png")


def _is_plain(setting: Setting, figures: Mapping[str, Any]) -> bool:
    """Whether nothing but sampler and number of steps was chosen."""
    return set(setting) == {"sampler", "steps", "guidance"} and setting["guidance"] == figures["guidance"]


def _mean(distance: Any, ours: Sequence[Floats], theirs: Sequence[Floats]) -> float:
    return float(np.mean([distance(one, other) for one, other in zip(ours, theirs, strict=True)]))


def _mel_distance_db(one: Floats, other: Floats) -> float:
    return float(np.abs(spectrogram_db(one) - spectrogram_db(other)).mean())


def _relative_l2(one: Floats, other: Floats) -> float:
    return float(np.linalg.norm(one - other) / np.linalg.norm(other))
