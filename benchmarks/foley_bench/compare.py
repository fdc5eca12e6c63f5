"""The whole clip of 10 s, the official way against this way, stage by stage in one run on one machine."""

import multiprocessing
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from matplotlib.figure import Figure
from rich import box
from rich.table import Table

from foley.bundle import Bundle
from foley.errors import BundleError
from foley.manifest import OpticalFlowConfig
from foley.options import GenerateOptions
from foley.profiles import resolve_sampling
from foley.sampler import Sampling, Step, sample
from foley.stages import networks
from foley_bench.flop import count_flop
from foley_bench.machine import CHECKOUT, describe, matrix_flop_per_s, servers_memory_bytes
from foley_bench.material import TEXTS, collect
from foley_bench.official import way
from foley_bench.part import Timing, timed
from foley_bench.report import Report
from foley_bench.served_way import works
from foley_client import Watch, embedded_triton
from foley_export.make import load_network

VIDEO = CHECKOUT / "examples" / "steel.mp4"
PAIRS, STEPS = 299, 200

WHOLE: Mapping[str, int] = {
    **{"decode": 300, "optical_flow": PAIRS, "jpeg": PAIRS, "rgb_features": PAIRS, "flow_features": PAIRS},
    **{"video2rms": 1, "clap_text": len(TEXTS), "denoiser": STEPS, "vae_decoder": 1, "vocoder": 1, "loudness": 1},
}
"""The official stages and of how many equal parts they are."""

PART: Mapping[str, int] = {"optical_flow": 12, "optical_flow_warm": 48, "jpeg": 100, "denoiser": 8}
"""How many parts of the slow stages are enough to tell; of the features, and of our RAFT, as many as 2 to 4 chunks."""
CHUNKS = {"optical_flow": 32, "rgb_features": 64, "flow_features": 64}

WAYS: Mapping[str, Mapping[str, str]] = {
    "balanced": {},
    "fast": {"optical_flow": "optical_flow_warm", "denoiser": "denoiser, fast"},
    "classical_flow": {"optical_flow": "optical_flow_dis"},
}
"""Our ways, by the stages that they put in the place of others."""

UNJUDGED = (
    "What `fast` does to optical flow cannot be judged without the published weights: RAFT's updates converge with "
    "them, with seeded ones they do not. `classical_flow` changes what Video2RMS sees. Neither is a default."
)


@dataclass(frozen=True)
class Row:
    """One stage of ours beside the official one that it stands for."""

    official: Timing | None
    ours: Timing | None
    floor_s: float

    @property
    def official_s(self) -> float:
        """Of the whole clip."""
        return self.official.seconds if self.official else 0.0

    @property
    def ours_s(self) -> float:
        """Of the whole clip."""
        return self.ours.seconds if self.ours else 0.0


def measure(bundle: Bundle, full: bool, watch: Watch) -> Report:
    """Measure every stage both ways: whole with `full`, else slow ones on a part, scaled.

    Raises:
        BundleError: the bundle has no RAFT, which the official way needs, or no graphs.
        ServerUnavailable: no embedded Triton starts here.
    """
    if not isinstance(bundle.manifest.optical_flow, OpticalFlowConfig):
        raise BundleError(f"the bundle {bundle.root} has no RAFT; compare one that has, such as bundles/paper")
    with watch.stage("matrix rate"):
        rate = matrix_flop_per_s()
    official, official_memory = _official(bundle, full, watch)
    ours, samplings, memory = _ours(bundle, full, watch)
    with watch.stage("counting arithmetic"):
        floors = {stage: flop / rate for stage, flop in _flop(bundle, samplings).items()}
    rows = {
        stage: Row(official.get(_stands_for(stage)), ours.get(stage), floors.get(stage, 0.0))
        for stage in dict.fromkeys([*official, *ours])
    }
    return _report(bundle, full, rate, rows, {"official": official_memory, "server": memory}, samplings)


def _official(bundle: Bundle, full: bool, watch: Watch) -> tuple[dict[str, Timing], int]:
    """The official way, in a process of its own, and the most memory that it took."""
    found = {}
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as process:
        for stage, whole in WHOLE.items():
            most = whole if full else min(whole, PART.get(stage, CHUNKS.get(stage, whole)))
            with watch.stage(f"official: {stage}"):
                found[stage] = process.submit(way.measure, bundle.root, VIDEO, stage, whole, most).result()
        return found, process.submit(way.peak_memory_bytes).result()


def _ours(bundle: Bundle, full: bool, watch: Watch) -> tuple[dict[str, Timing], dict[str, Sampling], int]:
    """Our stages through Triton, how they sampled, and the most memory that the server took."""
    found, memory = {}, 0
    with embedded_triton(bundle.root) as triton:
        samplings = {
            "denoiser": resolve_sampling(GenerateOptions(), triton.manifest.sampling),
            "denoiser, fast": resolve_sampling(GenerateOptions(profile="fast"), triton.manifest.sampling),
        }
        for stage, work in works(triton, collect(bundle, VIDEO), samplings).items():
            steps = samplings[stage].steps if stage in samplings else None
            whole = steps or (PAIRS + 1 if stage.startswith(("optical_flow", "rgb")) else WHOLE[stage])
            most = whole if full else CHUNKS.get(stage, whole)
            if stage == "optical_flow_warm" and not full:
                most = PART[stage]
            with watch.stage(f"ours: {stage}"):
                found[stage] = timed(work, whole, most)
            memory = max(memory, servers_memory_bytes())
    return found, samplings, memory


def _stands_for(stage: str) -> str:
    """The official stage in whose place `stage` is."""
    return next((theirs for ways in WAYS.values() for theirs, ours in ways.items() if ours == stage), stage)


@torch.inference_mode()
def _flop(bundle: Bundle, samplings: Mapping[str, Sampling]) -> dict[str, float]:
    """Arithmetic of the whole clip, by our stage."""
    pairs = 4  # a whole chain of the warm-started flow
    sizes = {"frames": pairs + 1, "pairs": pairs, "tokens": 8}
    found: dict[str, float] = {}
    for stage in networks(bundle.manifest):
        if stage.startswith("denoiser") or stage == "clap_audio":
            continue
        network = load_network(bundle, stage)
        flop = count_flop(partial(network, *network.sample_inputs(1, sizes)))
        in_time = stage.startswith("optical_flow") or stage.endswith("_features")
        found[stage] = flop * (PAIRS / pairs if in_time else len(TEXTS) if stage == "clap_text" else 1)
    denoiser = load_network(bundle, "denoiser")
    *conditions, guidance = denoiser.sample_inputs(1)
    one, two = (count_flop(partial(denoiser, *conditions, torch.full_like(guidance, scale))) for scale in (1, 2))
    for stage, sampling in samplings.items():
        found[stage] = sum(one if step.guidance == 1 else two for step in _steps(sampling))
    return found


def _steps(sampling: Sampling) -> list[Step]:
    """The steps of a loop, without its work."""
    asked: list[Step] = []

    def ask(latents: Any, step: Step) -> Any:
        asked.append(step)
        return latents

    for _ in sample(ask, sampling):
        pass
    return asked


def _report(
    bundle: Bundle,
    full: bool,
    rate: float,
    rows: Mapping[str, Row],
    memory: Mapping[str, int],
    samplings: Mapping[str, Sampling],
) -> Report:
    official_s = sum(rows[stage].official_s for stage in WHOLE)
    ways = {
        name: {stage: rows[replaced.get(stage, stage)].ours_s for stage in WHOLE if stage != "jpeg"}
        for name, replaced in WAYS.items()
    }
    totals = {name: sum(stages.values()) for name, stages in ways.items()}
    document = {
        **describe(bundle),
        "settings": {"full": full, "video": VIDEO.name, "steps": {n: s.steps for n, s in samplings.items()}},
        "matrix_flop_per_s": rate,
        "end_to_end": {
            "official_s": official_s,
            "ours_s": totals,
            "floor_s": sum(rows[stage].floor_s for stage in WHOLE),
            "ratio": {name: official_s / total for name, total in totals.items()},
        },
        "peak_memory_bytes": memory,
        "stages": {
            stage: {
                "official_s": row.official_s,
                "ours_s": row.ours_s,
                "floor_s": row.floor_s,
                "official_measured": _measured(row.official),
                "ours_measured": _measured(row.ours),
            }
            for stage, row in rows.items()
        },
    }
    return Report(
        title="The whole clip: the official way against this way",
        lead="A video of 10 s, every stage by itself: official is eager PyTorch in the official order of work (RAFT "
        "pair by pair, 200 steps of two calls, JPEG files between); ours goes through Triton. The end to end is the "
        "sum of the stages: that ours overlap is not counted. The floor is the arithmetic of ours at "
        f"{rate / 1e9:.0f} GFLOP/s, the best rate of a large matrix product in this run. A stage measured on a part "
        f"says so. Peak memory: official {memory['official'] / 2**30:.1f} GiB, a process that holds one network at a "
        f"time; our server {memory['server'] / 2**30:.1f} GiB, all networks loaded. {UNJUDGED}",
        document=document,
        tables=[_totals(document["end_to_end"]), _stages(rows)],
        pictures={"Seconds of a clip, by stage": _bars(ways, rows)},
    )


def _measured(timing: Timing | None) -> str:
    """Of how much of a stage its time comes: "12 of 299"; "whole", or "-" where there is no such stage."""
    if timing is None:
        return "-"
    return f"{timing.done} of {timing.whole}" if timing.is_scaled else "whole"


def _totals(end_to_end: Mapping[str, Any]) -> Table:
    shown = Table(box=box.SIMPLE_HEAD, title="End to end")
    for heading in ("way", "times as fast", "seconds"):
        shown.add_column(heading, justify="left" if heading == "way" else "right")
    shown.add_row("official", "1", f"{end_to_end['official_s']:.1f}")
    for name, ratio in end_to_end["ratio"].items():
        shown.add_row(name, f"{ratio:.2f}", f"{end_to_end['ours_s'][name]:.1f}")
    return shown


def _stages(rows: Mapping[str, Row]) -> Table:
    shown = Table(box=box.SIMPLE_HEAD, title="Stages")
    shown.add_column("stage", no_wrap=True)
    for heading in ("times as fast", "ours / floor", "official s", "ours s", "floor s"):
        shown.add_column(heading, justify="right")
    shown.add_column("measured, official; ours", no_wrap=True)
    for stage, row in rows.items():
        shown.add_row(
            stage,
            f"{row.official_s / row.ours_s:.2f}" if row.official and row.ours else "-",
            f"{row.ours_s / row.floor_s:.2f}" if row.floor_s and row.ours else "-",
            *(f"{seconds:.2f}" if seconds else "-" for seconds in (row.official_s, row.ours_s, row.floor_s)),
            f"{_measured(row.official)}; {_measured(row.ours)}",
        )
    return shown


def _bars(ways: Mapping[str, Mapping[str, float]], rows: Mapping[str, Row]) -> Figure:
    """A stacked bar for every way."""
    bars = {"official": {stage: rows[stage].official_s for stage in WHOLE}, **ways}
    figure = Figure(figsize=(11, 4), layout="constrained")
    axes = figure.subplots()
    left = [0.0] * len(bars)
    for stage in WHOLE:
        widths = [stages.get(stage, 0.0) for stages in bars.values()]
        axes.barh(list(bars), widths, left=left, label=stage)
        left = [before + width for before, width in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("seconds")
    figure.legend(loc="outside right upper")
    return figure
