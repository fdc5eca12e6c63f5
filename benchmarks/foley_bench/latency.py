"""`foley-bench latency`: latency of single requests from a video to its sound over gRPC, and serving overhead.

Latency is measured with overlapping calls, overhead with sequential ones; see `foley_bench.overhead`.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import Any, get_args

from matplotlib.figure import Figure
from rich.table import Table

from foley import media
from foley.bundle import Bundle
from foley.options import GenerateOptions
from foley_bench.counters import read_counters
from foley_bench.inputs import PROMPT
from foley_bench.machine import describe
from foley_bench.measurement import interleave
from foley_bench.overhead import NETWORKS, ClipTiming, SerialTriton, TimeBreakdown
from foley_bench.report import Report, stacked_bars, table
from foley_client.embedded import embedded_triton
from foley_pipeline.progress import StageTimer
from foley_pipeline.request import GenerationRequest
from foley_pipeline.rms2sound import Loop
from foley_pipeline.triton import TritonClient
from foley_pipeline.triton_backend import TritonBackend

LOOPS: tuple[Loop, ...] = get_args(Loop)
TARGET_OVERHEAD_PERCENT, TARGET_OVERHEAD_MS = 2, 4  # aims at the paper's size: of the time, and of a step


def measure(bundle: Bundle, video: Path, runs: int, timer: StageTimer) -> Report:
    """Time `runs` clips with each loop, and half as many with sequential calls for the overhead.

    Raises:
        MediaError: If `video` cannot be used.
        ServerUnavailable: If the embedded Triton cannot start.
    """
    duration_s = media.probe(video).duration_s
    with embedded_triton(bundle.root) as triton, closing(SerialTriton(triton.url)) as serial:
        sampling = TritonBackend(triton).defaults
        make: dict[str, Callable[[], ClipTiming]] = {loop: partial(_clip, triton, video, loop) for loop in LOOPS}
        with timer.stage("warming up"):
            interleave(make, 1)
        with timer.stage("clips", runs) as progress:
            clips = interleave(make, runs, on_round=progress.advance)
        breakdown: dict[str, Callable[[], TimeBreakdown]] = {
            loop: partial(_breakdown, serial, video, loop) for loop in LOOPS
        }
        with timer.stage("overhead", (runs + 1) // 2) as progress:
            breakdowns = interleave(breakdown, (runs + 1) // 2, on_round=progress.advance)
    document = {
        **describe(bundle),
        "settings": {
            "video_seconds": duration_s,
            "runs": runs,
            "sampler": sampling.sampler,
            "steps": sampling.steps,
            "guidance": sampling.guidance,
        },
        "latency": {loop: _latency(results) for loop, results in clips.items()},
        "overhead": {loop: _overhead(results, sampling.steps) for loop, results in breakdowns.items()},
        # with the loop in the client, which sees the parts of a step
        "step": {
            f"{part}_ms": 1e3 * fmean(one.step_parts_s()[part] for one in breakdowns["client"]) / sampling.steps
            for part in breakdowns["client"][0].step_parts_s()
        },
    }
    return Report(
        title=f"Latency of a clip: {bundle.manifest.name}",
        description=f"From a video of {duration_s:g} s to its sound over gRPC, one request at a time, {runs} clips "
        f"with each loop; {sampling.sampler}, {sampling.steps} steps, guidance {sampling.guidance:g}. The client "
        f"overlaps its calls; the overhead is that of {len(breakdowns['client'])} more clips with sequential calls.",
        document=document,
        tables=[_latency_table(document), _overhead_table(document), _step_table(document)],
        pictures={
            "Mean time of a clip with sequential calls: networks by stage, and overhead.": _plot(document["overhead"])
        },
    )


def _clip(triton: TritonClient, video: Path, loop: Loop) -> ClipTiming:
    """Generate one clip as `foley generate` does, without a cache."""
    request = GenerationRequest(video, options=GenerateOptions(text=PROMPT))
    started = time.perf_counter()
    result = TritonBackend(triton, loop=loop).generate(request)
    return ClipTiming(time.perf_counter() - started, result.timings_s)


def _breakdown(triton: SerialTriton, video: Path, loop: Loop) -> TimeBreakdown:
    before = read_counters(triton)
    triton.calls_s.clear()
    clip = _clip(triton, video, loop)
    return TimeBreakdown(
        clip, dict(triton.calls_s), {name: counters - before[name] for name, counters in read_counters(triton).items()}
    )


def _latency(clips: Sequence[ClipTiming]) -> dict[str, Any]:
    seconds = [clip.wall_s for clip in clips]
    return {
        "median_s": median(seconds),
        "min_s": min(seconds),
        "max_s": max(seconds),
        "stages_s": {stage: fmean(clip.stages_s[stage] for clip in clips) for stage in clips[0].stages_s},
    }


def _overhead(breakdowns: Sequence[TimeBreakdown], steps: int) -> dict[str, Any]:
    overhead_s, wall_s = fmean(one.overhead_s for one in breakdowns), fmean(one.clip.wall_s for one in breakdowns)
    return {
        "wall_s": wall_s,
        "networks_s": {stage: fmean(one.networks_s[stage] for one in breakdowns) for stage in NETWORKS},
        "overhead_s": overhead_s,
        "overhead_percent": 100 * overhead_s / wall_s,
        "overhead_ms_per_step": 1e3 * fmean(one.loop_overhead_s for one in breakdowns) / steps,
    }


def _latency_table(document: Mapping[str, Any]) -> Table:
    rows = []
    for loop, results in document["latency"].items():
        stages = [results["stages_s"].get(stage) for stage in NETWORKS]
        seconds = [*(results[f"{name}_s"] for name in ("median", "min", "max")), *stages]
        rows.append([loop, *("" if value is None else f"{value:.3f}" for value in seconds)])
    return table(
        "Latency of a clip, in seconds",
        ["loop", "median", "min", "max", *NETWORKS],
        rows,
        f"{document['settings']['runs']} clips with each loop. Stages: means, timed in the client; the prompt is "
        "embedded in parallel with the video features. With the server loop, denoising includes decoding.",
    )


def _overhead_table(document: Mapping[str, Any]) -> Table:
    return table(
        "Overhead: all time outside the networks",
        ["loop", "overhead\n%", "overhead per\nstep, ms", "overhead\nms", "networks\ns", "clip\ns"],
        [
            [
                loop,
                f"{results['overhead_percent']:.2f}",
                f"{results['overhead_ms_per_step']:.2f}",
                f"{results['overhead_s'] * 1e3:.1f}",
                f"{sum(results['networks_s'].values()):.3f}",
                f"{results['wall_s']:.3f}",
            ]
            for loop, results in document["overhead"].items()
        ],
        "Sequential calls. Per step: of the diffusion loop only. Targets at the paper's size: "
        f"{TARGET_OVERHEAD_PERCENT} %, {TARGET_OVERHEAD_MS} ms per step.",
    )


def _step_table(document: Mapping[str, Any]) -> Table:
    return table(
        "One denoising step with the client loop, in ms",
        ["total", *(key.removesuffix("_ms") for key in document["step"] if key != "wall_ms")],
        [[f"{value:.2f}" for value in document["step"].values()]],
        "Queue: wait in the dynamic batcher for steps of other requests. Copies: Triton's copies of tensors to and "
        "from the network. gRPC: the rest of the call. Client: the sampler, between two calls.",
    )


def _plot(overhead: Mapping[str, Any]) -> Figure:
    parts = {stage: [results["networks_s"][stage] for results in overhead.values()] for stage in NETWORKS}
    parts["overhead"] = [results["overhead_s"] for results in overhead.values()]
    return stacked_bars(parts, list(overhead), "seconds")
