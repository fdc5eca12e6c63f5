"""`foley-bench latency`: one clip at a time, from a video file to its sound over gRPC, and the overhead of serving.

Latency is measured as a user meets it; overhead on clips of their own, see `foley_bench.account`.
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
from foley.envelope import samples
from foley_bench.account import NETWORKS, Account, Clip, SerialTriton
from foley_bench.inputs import PROMPT
from foley_bench.machine import describe
from foley_bench.measurement import interleave
from foley_bench.report import Report, stacked_bars, table
from foley_bench.work import read
from foley_client import Foley, Prompt, Triton, Watch, embedded_triton
from foley_pipeline.rms2sound import Loop

LOOPS: tuple[Loop, ...] = get_args(Loop)
OVERHEAD_PERCENT, OVERHEAD_MS = 2, 4  # aims at the paper's size: of the time, and of a step


def measure(bundle: Bundle, video: Path, runs: int, watch: Watch) -> Report:
    """Time `runs` clips with each loop, and account for half as many whose calls are made one after another.

    Raises:
        MediaError: `video` is none that can be used.
        ServerUnavailable: no embedded Triton starts here.
    """
    duration_s = media.probe(video).duration_s
    with embedded_triton(bundle.root) as triton, closing(SerialTriton(triton.url)) as serial:
        sampling = Foley(triton).defaults
        make: dict[str, Callable[[], Clip]] = {loop: partial(_clip, triton, video, duration_s, loop) for loop in LOOPS}
        with watch.stage("warming up"):
            interleave(make, 1)
        with watch.stage("clips", runs) as progress:
            clips = interleave(make, runs, on_round=progress.advance)
        account: dict[str, Callable[[], Account]] = {
            loop: partial(_account, serial, video, duration_s, loop) for loop in LOOPS
        }
        with watch.stage("overhead", (runs + 1) // 2) as progress:
            accounts = interleave(account, (runs + 1) // 2, on_round=progress.advance)
    document = {
        **describe(bundle),
        "settings": {
            "video_seconds": duration_s,
            "runs": runs,
            "sampler": sampling.sampler,
            "steps": sampling.steps,
            "guidance": sampling.guidance,
        },
        "latency": {loop: _latency(found) for loop, found in clips.items()},
        "overhead": {loop: _overhead(found, sampling.steps) for loop, found in accounts.items()},
        # with the loop in the client, which sees the parts of a step
        "step": {
            f"{part}_ms": 1e3 * fmean(one.step_parts_s()[part] for one in accounts["client"]) / sampling.steps
            for part in accounts["client"][0].step_parts_s()
        },
    }
    return Report(
        title=f"Latency of a clip: {bundle.manifest.name}",
        lead=f"A video of {duration_s:g} s to its sound over gRPC, one request at a time, {runs} times with each loop; "
        f"{sampling.sampler}, {sampling.steps} steps, guidance {sampling.guidance:g}. The client overlaps its calls; "
        f"for the overhead, {len(accounts['client'])} more clips with each loop make them one after another, so that "
        "nothing hides it.",
        document=document,
        tables=[_latency_table(document), _overhead_table(document), _step_table(document)],
        pictures={
            "Mean time of a clip: networks by stage, and overhead. Calls one after another.": _parts(
                document["overhead"]
            )
        },
    )


def _clip(triton: Triton, video: Path, duration_s: float, loop: Loop) -> Clip:
    """One clip as `foley generate` makes it, without a cache."""
    foley, watch, prompt = Foley(triton), Watch(), Prompt(PROMPT)
    started = time.perf_counter()
    envelope, embeddings = foley.prepare(video, prompt, watch)
    foley.generate(envelope, samples(duration_s), prompt, embeddings=embeddings, loop=loop, watch=watch)
    return Clip(time.perf_counter() - started, dict(watch.timings_s))


def _account(triton: SerialTriton, video: Path, duration_s: float, loop: Loop) -> Account:
    before = read(triton)
    triton.calls_s.clear()
    clip = _clip(triton, video, duration_s, loop)
    return Account(clip, dict(triton.calls_s), {name: work - before[name] for name, work in read(triton).items()})


def _latency(clips: Sequence[Clip]) -> dict[str, Any]:
    seconds = [clip.wall_s for clip in clips]
    return {
        "median_s": median(seconds),
        "min_s": min(seconds),
        "max_s": max(seconds),
        "stages_s": {stage: fmean(clip.stages_s[stage] for clip in clips) for stage in clips[0].stages_s},
    }


def _overhead(accounts: Sequence[Account], steps: int) -> dict[str, Any]:
    overhead_s, wall_s = fmean(one.overhead_s for one in accounts), fmean(one.clip.wall_s for one in accounts)
    return {
        "wall_s": wall_s,
        "networks_s": {stage: fmean(one.networks_s[stage] for one in accounts) for stage in NETWORKS},
        "calls_s": {model: fmean(one.calls_s[model] for one in accounts) for model in accounts[0].calls_s},
        "serving_s": fmean(one.serving_s for one in accounts),
        "client_s": fmean(one.overhead_s - one.serving_s for one in accounts),
        "overhead_s": overhead_s,
        "overhead_percent": 100 * overhead_s / wall_s,
        "overhead_ms_per_step": 1e3 * fmean(one.loop_overhead_s for one in accounts) / steps,
    }


def _latency_table(document: Mapping[str, Any]) -> Table:
    rows = []
    for loop, found in document["latency"].items():
        stages = [found["stages_s"].get(stage) for stage in NETWORKS]
        seconds = [*(found[f"{name}_s"] for name in ("median", "min", "max")), *stages]
        rows.append([loop, *("" if value is None else f"{value:.3f}" for value in seconds)])
    return table(
        "Latency of a clip, in seconds",
        ["loop", "median", "least", "most", *NETWORKS],
        rows,
        f"{document['settings']['runs']} clips with each loop. Stages: mean, as the client times them; the prompt is "
        "embedded beside the video's features. The server's loop decodes too, under denoising.",
    )


def _overhead_table(document: Mapping[str, Any]) -> Table:
    headings = ["overhead\n%", "overhead\nms a step", "overhead\nms", "serving\nms", "client\nms", "networks\ns"]
    return table(
        "Overhead: everything that is not a network",
        ["loop", *headings, "clip\ns"],
        [
            [
                loop,
                f"{found['overhead_percent']:.2f}",
                f"{found['overhead_ms_per_step']:.2f}",
                *(f"{found[key] * 1e3:.1f}" for key in ("overhead_s", "serving_s", "client_s")),
                f"{sum(found['networks_s'].values()):.3f}",
                f"{found['wall_s']:.3f}",
            ]
            for loop, found in document["overhead"].items()
        ],
        "Calls one after another. Serving: in calls, beyond the networks' computing. Client: outside calls. Of a step: "
        f"the diffusion loop's alone. Aims at the paper's size: {OVERHEAD_PERCENT} %, {OVERHEAD_MS} ms a step.",
    )


def _step_table(document: Mapping[str, Any]) -> Table:
    return table(
        "One denoising step, the loop in the client, in ms",
        ["step", *(key.removesuffix("_ms") for key in document["step"] if key != "wall_ms")],
        [[f"{value:.2f}" for value in document["step"].values()]],
        "Queue: the wait in the batcher, which collects steps of other requests. Copies: Triton's, of tensors to and "
        "from the network. gRPC: the rest of the call. Client: the sampler, between two calls.",
    )


def _parts(overhead: Mapping[str, Any]) -> Figure:
    parts = {stage: [found["networks_s"][stage] for found in overhead.values()] for stage in NETWORKS}
    parts |= {f"overhead: {name}": [one[f"{name}_s"] for one in overhead.values()] for name in ("serving", "client")}
    return stacked_bars(parts, list(overhead), "seconds")
