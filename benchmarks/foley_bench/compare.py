"""`foley-bench compare`: compares the baseline with the server on a whole clip, network by network.

A clip is made of equal units of work: a chunk of frames, a step of the denoiser, one decoded clip. Each unit is timed
on both sides in turn, on the same inputs; seconds of a clip are medians times the number of units in it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table

from foley.bundle import Bundle
from foley.dis_flow import DisFlow
from foley.errors import BundleError
from foley.manifest import DisFlowConfig, OpticalFlowConfig
from foley.media import read_frames
from foley.options import GenerateOptions
from foley.profiles import resolve_sampling
from foley.sampler import Sampling, sample
from foley_bench import inputs
from foley_bench.baseline import images
from foley_bench.baseline.networks import run
from foley_bench.baseline.sound import STEPS
from foley_bench.machine import CHECKOUT, describe, pin_threads
from foley_bench.measurement import Peak, Timing, own_process, peak_memory, server_processes
from foley_bench.measurement import measure as measure_calls
from foley_bench.report import Report, format_ms, stacked_bars, table
from foley_bench.roofline import count_flop, matrix_rates
from foley_client.embedded import embedded_triton
from foley_export.make import load_network
from foley_pipeline.progress import StageTimer
from foley_pipeline.triton import TritonClient
from foley_pipeline.triton_backend import TritonBackend

VIDEO = CHECKOUT / "examples" / "steel.mp4"
ROUNDS = 5

Call = Callable[[], object]

FLOWS: Mapping[str, str] = {"default": "server", "warm": "warm start", "dis": "DIS"}
LIMITATIONS = (
    "The effect of the warm start of `fast` on the flow can be measured with the published weights only: RAFT's "
    "updates do not converge with seeded ones. DIS changes the input of Video2RMS."
)


@dataclass(frozen=True)
class Unit:
    """A unit of work and its implementations.

    Attributes:
        count: Number of units in a clip; of the denoiser, in a step.
        calls: By name. "baseline" and "server" do the same work; others take the place of "server" in some settings.
        flop: Arithmetic of a call, by the name of the call; empty where there is no network.
    """

    count: float
    calls: Mapping[str, Call]
    flop: Mapping[str, int]


@dataclass(frozen=True)
class Comparison:
    """A configuration of the baseline and one of the server.

    Attributes:
        baseline_steps: Denoising steps of the baseline, each with guidance.
        guided, unguided: Denoising steps of the server with guidance and without.
        flow: The server's optical flow, a key of `FLOWS`.
    """

    what: str
    baseline_steps: int
    guided: int
    unguided: int = 0
    flow: str = "default"


def measure(bundle: Bundle, full: bool, timer: StageTimer) -> Report:
    """Time every unit on both sides, `ROUNDS` times; with `full`, as often as in a clip.

    Raises:
        BundleError: If the bundle has no RAFT, which the baseline needs, or no graphs.
        ServerUnavailable: If the embedded Triton cannot start.
    """
    if not isinstance(bundle.manifest.optical_flow, OpticalFlowConfig):
        raise BundleError(f"the bundle {bundle.root} has no RAFT; choose a bundle with RAFT, such as bundles/paper")
    bundle.need_graphs()
    threads = pin_threads(bundle)
    with timer.stage("matrix rate"):
        rate = max(matrix_rates().values())
    timings: dict[str, dict[str, Timing]] = {}
    peaks = {"baseline": Peak(), "server": Peak()}
    with embedded_triton(bundle.root) as triton, torch.inference_mode():
        comparisons = make_comparisons(TritonBackend(triton))
        work = clip_units(bundle, triton, VIDEO)
        for name, unit in work.items():
            times = math.ceil(STEPS if name == "denoiser" else unit.count)
            rounds = max(ROUNDS, times) if full else ROUNDS
            for side, call in unit.calls.items():
                processes = own_process if side == "baseline" else server_processes
                with peak_memory(processes, peaks["baseline" if side == "baseline" else "server"]):
                    call()
            with timer.stage(name, rounds) as progress:
                timings[name] = measure_calls(unit.calls, rounds, on_round=progress.advance, warm_up=0)
    document = {
        **describe(bundle),
        "settings": {"full": full, "video": VIDEO.name, "threads": threads},
        "matrix_flop_per_s": rate,
        "end_to_end": {one.what: end_to_end(one, work, timings, rate) for one in comparisons},
        "control": {"decode_speedup": _speedup(timings["decode"])},
        "peak_memory_bytes": {side: peak.memory_bytes for side, peak in peaks.items()},
        "units": {
            name: {
                "count": unit.count,
                **{side: timing.as_dict() for side, timing in timings[name].items()},
                **{f"bound_of_{side}_s": flop / rate for side, flop in unit.flop.items()},
            }
            for name, unit in work.items()
        },
    }
    return _report(document, work, timings, comparisons)


def make_comparisons(backend: TritonBackend) -> list[Comparison]:
    """Return the comparisons: the same work, the same number of steps, and the profiles."""
    steps = backend.defaults.steps
    comparisons = [Comparison("same work", STEPS, STEPS), Comparison(f"{steps} steps on both sides", steps, steps)]
    for name, flow in (("balanced", "default"), ("fast", "warm"), ("balanced", "dis")):
        options = GenerateOptions(profile="fast" if name == "fast" else "balanced")
        guided, unguided = _steps(resolve_sampling(options, backend.triton.manifest.sampling))
        what = f"--profile {name}" + (" --flow dis" if flow == "dis" else "")
        comparisons.append(Comparison(what, STEPS, guided, unguided, flow))
    return comparisons


def clip_units(bundle: Bundle, triton: TritonClient, video: Path) -> dict[str, Unit]:
    """Return the units of a clip in pipeline order; `video` must have at least one chunk of frames."""

    def decode() -> None:
        for _frame in read_frames(video):
            pass

    frames = np.stack(list(islice(read_frames(video), inputs.SIZES["frames"])))
    flow = DisFlow(DisFlowConfig()).flow(frames)

    def jpeg() -> None:
        images.through_jpeg(frames[1:])
        images.flow_through_jpeg(flow)

    units = {
        # the same function on both sides: a control, whose ratio is the error of the comparison
        "decode": Unit(1, {"baseline": decode, "server": decode}, {}),
        "JPEG files": Unit(inputs.CHUNKS, {"baseline": jpeg}, {}),
    }
    for name, count in inputs.CALLS.items():
        network = load_network(bundle, name)
        tensors = inputs.sample(network)
        calls: dict[str, Call] = {
            "baseline": partial(run, network, tensors),
            "server": partial(triton.infer, name, **inputs.named(network, tensors)),
        }
        flop = {"server": count_flop(partial(network, *tensors))}
        if name == "optical_flow":
            warm = load_network(bundle, "optical_flow_warm")
            calls[FLOWS["warm"]] = partial(triton.infer, "optical_flow_warm", **inputs.named(network, tensors))
            calls[FLOWS["dis"]] = partial(triton.infer, "optical_flow_dis", frames=frames)
            flop[FLOWS["warm"]] = count_flop(partial(warm, *tensors))
        if name == "denoiser":
            unguided = inputs.sample(network, guidance=1.0)
            calls["without guidance"] = partial(triton.infer, name, **inputs.named(network, unguided))
            flop["without guidance"] = count_flop(partial(network, *unguided))
        units[name] = Unit(count, calls, flop)
    return units


def end_to_end(
    comparison: Comparison, work: Mapping[str, Unit], timings: Mapping[str, Mapping[str, Timing]], rate: float
) -> dict[str, float]:
    """Return the seconds of a clip on both sides, their ratio, and the bound of the server's arithmetic."""
    baseline = sum(_unit_seconds(work, timings, comparison, "baseline").values())
    server = sum(_unit_seconds(work, timings, comparison, "server").values())
    flop = sum(count * work[name].flop.get(call, 0) for name, call, count in _server_calls(work, comparison))
    return {"baseline_s": baseline, "server_s": server, "speedup": baseline / server, "bound_s": flop / rate}


def _unit_seconds(
    work: Mapping[str, Unit], timings: Mapping[str, Mapping[str, Timing]], comparison: Comparison, side: str
) -> dict[str, float]:
    """Return the seconds of a clip by unit."""
    if side == "baseline":
        counts = {name: comparison.baseline_steps if name == "denoiser" else unit.count for name, unit in work.items()}
        return {name: counts[name] * timings[name]["baseline"].median_s for name in work}
    seconds = dict.fromkeys(work, 0.0)
    for name, call, count in _server_calls(work, comparison):
        seconds[name] += count * timings[name][call].median_s
    return seconds


def _server_calls(work: Mapping[str, Unit], comparison: Comparison) -> list[tuple[str, str, float]]:
    """Return the server's calls for a clip: unit, name of the call, number of calls."""
    calls: list[tuple[str, str, float]] = []
    for name, unit in work.items():
        if name == "denoiser":
            calls += [(name, "server", comparison.guided), (name, "without guidance", comparison.unguided)]
        elif "server" in unit.calls:
            calls.append((name, FLOWS[comparison.flow] if name == "optical_flow" else "server", unit.count))
    return calls


def _steps(sampling: Sampling) -> tuple[int, int]:
    """Return the numbers of steps with guidance and without."""
    guidance: list[float] = []

    def denoise(latents: Any, step: Any) -> Any:
        guidance.append(step.guidance)
        return latents

    for _ in sample(denoise, sampling):
        pass
    unguided = guidance.count(1.0)
    return len(guidance) - unguided, unguided


def _speedup(timing: Mapping[str, Timing], call: str = "server") -> float:
    return timing["baseline"].median_s / timing[call].median_s


def _report(
    document: dict[str, Any],
    work: Mapping[str, Unit],
    timings: Mapping[str, Mapping[str, Timing]],
    comparisons: Sequence[Comparison],
) -> Report:
    gibibytes = {side: size / 2**30 for side, size in document["peak_memory_bytes"].items()}
    bars = {
        f"{side}, {one.what}": _unit_seconds(work, timings, one, side)
        for one in comparisons
        for side in ("baseline", "server")
    }
    return Report(
        title="A whole clip: the baseline against the server",
        description="A 10 s video with one prompt. Baseline: eager PyTorch in the official order of work (RAFT pair by "
        "pair, frames and flow through JPEG, two calls per step); server: Triton over gRPC. Both use "
        f"{document['settings']['threads']} threads and are called in turn on the same inputs. End to end is the sum "
        "of all units, without the overlap of the client's calls. The bound is the server's arithmetic at "
        f"{document['matrix_flop_per_s'] / 1e9:.0f} GFLOP/s, the best rate of a large matrix product in this run. "
        f"Control: decoding, the same function on both sides, has a ratio of "
        f"{document['control']['decode_speedup']:.3f}; it should be 1. Peak memory (PSS): baseline "
        f"{gibibytes['baseline']:.1f} GiB with all networks loaded, server {gibibytes['server']:.1f} GiB. "
        f"{LIMITATIONS}",
        document=document,
        tables=[_end_to_end_table(document["end_to_end"]), _units_table(work, timings, document["matrix_flop_per_s"])],
        pictures={
            "Seconds per clip by unit.": stacked_bars(
                {name: [seconds[name] for seconds in bars.values()] for name in work}, list(bars), "seconds"
            )
        },
    )


def _end_to_end_table(seconds: Mapping[str, Mapping[str, float]]) -> Table:
    return table(
        "End to end",
        ["comparison", "speed-up", "baseline s", "server s", "bound s"],
        [
            [what, f"{one['speedup']:.2f}", *(f"{one[key]:.1f}" for key in ("baseline_s", "server_s", "bound_s"))]
            for what, one in seconds.items()
        ],
        "Only the first two rows compare runtimes, with the same number of steps on both sides. In the others the "
        f"baseline takes {STEPS} steps, so they include the faster algorithm.",
    )


def _units_table(work: Mapping[str, Unit], timings: Mapping[str, Mapping[str, Timing]], rate: float) -> Table:
    rows = []
    for name, unit in work.items():
        for side, timing in timings[name].items():
            bound_s = unit.flop.get(side, 0) / rate
            rows.append(
                [
                    f"{name}: {side}",
                    f"{unit.count:.1f}",
                    format_ms(timing.as_dict()),
                    f"{_speedup(timings[name], side):.2f}" if "baseline" in timings[name] else "",
                    f"{timing.median_s / bound_s:.2f}" if bound_s else "",
                ]
            )
    return table(
        "Units",
        ["unit", "units\nper clip", "ms per\nunit", "speed-up", "time /\nbound"],
        rows,
        "Medians ± half the interquartile range. Denoiser: units per step.",
    )
