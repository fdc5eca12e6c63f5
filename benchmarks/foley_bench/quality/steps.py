"""`foley-bench steps`: speed and quality of sampling settings, on the same clips and seeds."""

import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
from rich.table import Table

from foley import __version__
from foley.bundle import Bundle
from foley.envelope import Floats
from foley.metrics import relative_l2
from foley_bench import report as tables
from foley_bench.quality import clips
from foley_bench.quality.ground_truth import audio_stats, conditions, measure_ground_truth, scores, with_seeds
from foley_bench.quality.rms2sound import generate
from foley_bench.quality.timbre import spectrogram_db
from foley_client.embedded import embedded_triton
from foley_pipeline.progress import StageTimer
from foley_pipeline.triton_backend import TritonBackend

Setting = Mapping[str, Any]
"""Fields of `foley.sampler.Sampling` that replace the bundle's defaults."""

GUIDANCE = 2.5  # of the rows that measure the effect of less guidance

SETTINGS: tuple[Setting, ...] = (
    *({"sampler": "ddim", "steps": steps} for steps in (200, 50, 25, 10)),
    *({"sampler": "dpm++", "steps": steps} for steps in (50, 25, 15, 10, 8, 5)),
    *({"sampler": "dpm++", "steps": steps, "timestep_spacing": "karras"} for steps in (25, 10)),
    *({"sampler": "dpm++", "steps": steps, "timestep_spacing": "log-snr"} for steps in (50, 25, 10)),
    {"sampler": "ddim", "steps": 200, "guidance": GUIDANCE},
    {"sampler": "dpm++", "steps": 25, "guidance": GUIDANCE},
    *(
        {"sampler": "dpm++", "steps": 25, "guidance": GUIDANCE, "guidance_interval": interval}
        for interval in ((0.0, 5.0), (0.3, 100.0), (0.3, 5.0), (1.0, 5.0))
    ),
    *(
        {
            "sampler": "dpm++",
            "steps": 10,
            "timestep_spacing": "log-snr",
            "guidance": GUIDANCE,
            "guidance_interval": interval,
        }
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
    "seconds": "s per clip ↓",
    "speedup": "speed-up ↑",
}


def measure_steps(
    bundle: Bundle, count: int, seed: int, timer: StageTimer, settings: Sequence[Setting] = SETTINGS
) -> dict[str, Any]:
    """Generate sounds from text and true envelopes with each of `settings`; return the JSON document.

    Distances are to the first setting of the same guidance: `mel_distance_db` is the mean difference of log-mel
    spectrograms, 60 dB deep; `waveform_distance` the mean relative L2 distance of waveforms, at which 1.4 is a sound
    of the same loudness that has nothing to do with it. `seconds` is the time for all clips, divided by their number:
    throughput, with several under way; `speed_up` is the first setting's over it.
    """
    scenes = clips.scenes("test", count, seed)
    rows: list[dict[str, Any]] = []
    references: dict[float, tuple[list[Floats], float]] = {}  # the reference by guidance
    with embedded_triton(bundle.root) as triton:
        ground_truth = measure_ground_truth(triton, scenes, seed, timer)
        conditionings = conditions(ground_truth, "text")
        defaults = TritonBackend(triton).defaults
        for setting in settings:
            sampling = replace(defaults, **setting)
            generated = generate(triton, conditionings, with_seeds(sampling, count))
            with timer.stage(describe(setting), count) as stage, closing(generated):
                waveforms = []
                started = time.perf_counter()
                for waveform in generated:
                    waveforms.append(waveform)
                    stage.advance()
                seconds = (time.perf_counter() - started) / count
            reference, reference_s = references.setdefault(sampling.guidance, (waveforms, seconds))
            rows.append(
                {
                    "setting": {**setting, "guidance": sampling.guidance},
                    **scores([audio_stats(triton, waveform) for waveform in waveforms], ground_truth),
                    "mel_distance_db": _mean(_mel_distance_db, waveforms, reference),
                    "waveform_distance": _mean(relative_l2, waveforms, reference),
                    "seconds": seconds,
                    "speedup": reference_s / seconds,
                }
            )
        versions = {"foley": __version__, **triton.versions}
    return {"clips": count, "seed": seed, "guidance": defaults.guidance, "versions": versions, "rows": rows}


def describe(setting: Setting) -> str:
    """Format a setting, such as "dpm++, 25 steps, log-snr"."""
    words = [setting["sampler"], f"{setting['steps']} steps"]
    if "timestep_spacing" in setting:
        words.append(setting["timestep_spacing"])
    if "guidance" in setting:
        words.append(f"guidance {setting['guidance']:g}")
    if "guidance_interval" in setting:
        low, high = setting["guidance_interval"]
        words.append(f"from {low:g} to {high:g}")
    return ", ".join(words)


def table(figures: Mapping[str, Any]) -> Table:
    """Return the document as a table."""
    versions = figures["versions"]
    return tables.table(
        "Speed against quality",
        ["setting", *_COLUMNS.values()],
        [[describe(row["setting"]), *(f"{row[key]:.4f}" for key in _COLUMNS)] for row in figures["rows"]],
        f"{figures['clips']} test clips, seed {figures['seed']}, text prompts, true envelopes, the same noise in every "
        "row. Distances and speed-up: relative to the first row of the same guidance. "
        f"Bundle {versions['bundle']} ({versions['bundle_sha256'][:12]}).",
    )


def _mean(distance: Any, ours: Sequence[Floats], theirs: Sequence[Floats]) -> float:
    return float(np.mean([distance(one, other) for one, other in zip(ours, theirs, strict=True)]))


def _mel_distance_db(one: Floats, other: Floats) -> float:
    return float(np.abs(spectrogram_db(one) - spectrogram_db(other)).mean())
