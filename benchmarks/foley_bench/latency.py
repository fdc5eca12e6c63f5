"""One clip at a time, from a video file to its sound over gRPC: how long it takes, and what of that serving costs.

Latency is measured as a user meets it; overhead on clips of their own, see `foley_bench.account`.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar, get_args

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from rich import box
from rich.table import Table

from foley import media
from foley.bundle import Bundle
from foley.envelope import samples
from foley_bench.account import DENOISING, NETWORKS, Account, Clip, OneAtATime
from foley_bench.machine import describe
from foley_bench.report import Report
from foley_bench.work import read
from foley_client import Foley, Prompt, Triton, Watch, embedded_triton
from foley_pipeline.rms2sound import Loop

LOOPS: tuple[Loop, ...] = get_args(Loop)
PROMPT = Prompt("a stick hits metal")
PERCENTILES = (50, 95, 99)
OVERHEAD_PERCENT, OVERHEAD_MS = 2, 4  # aims at the paper's size: of the time, and of a step

Made = TypeVar("Made")


def measure(bundle: Bundle, video: Path, runs: int, watch: Watch) -> Report:
    """`runs` clips with each loop, and half as many whose calls go one after another.

    Raises:
        MediaError: `video` is none that can be used.
        ServerUnavailable: no embedded Triton starts here.
    """
    duration_s = media.probe(video).duration_s
    with embedded_triton(bundle.root) as triton, closing(OneAtATime(triton.url)) as one_at_a_time:
        sampling = Foley(triton).defaults
        _each_loop(lambda loop: _clip(triton, video, duration_s, loop), 1, watch, "warming up")
        clips = _each_loop(lambda loop: _clip(triton, video, duration_s, loop), runs, watch, "clips")
        accounts = _each_loop(
            lambda loop: _account(one_at_a_time, video, duration_s, loop), (runs + 1) // 2, watch, "overhead"
        )
    document = {
        **describe(bundle),
        "settings": {
            "video_seconds": duration_s,
            "runs": runs,
            "sampler": sampling.sampler,
            "steps": sampling.steps,
            "guidance": sampling.guidance,
        },
        "latency": {loop: _latency(clips[loop]) for loop in LOOPS},
        "overhead": {loop: _overhead(accounts[loop], sampling.steps) for loop in LOOPS},
        "step": _step(accounts["client"], sampling.steps),  # with the loop in the client, who sees its parts
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
            "What a clip spends its time on, mean: networks by stage as Triton counts them, and everything else. "
            "Calls one after another.": _stack(document),
        },
    )


def _each_loop(make: Callable[[Loop], Made], times: int, watch: Watch, what: str) -> dict[Loop, list[Made]]:
    """What is made `times` times with each loop; in turn, so that a slow minute of the machine is one of both."""
    made: dict[Loop, list[Made]] = {loop: [] for loop in LOOPS}
    with watch.stage(what, times * len(LOOPS)) as stage:
        for _ in range(times):
            for loop in LOOPS:
                made[loop].append(make(loop))
                stage.advance()
    return made


def _clip(triton: Triton, video: Path, duration_s: float, loop: Loop) -> Clip:
    """One clip as `foley generate` makes it, without a cache."""
    foley, watch = Foley(triton), Watch()
    started = time.perf_counter()
    envelope, embeddings = foley.prepare(video, PROMPT, watch)
    foley.generate(envelope, samples(duration_s), PROMPT, embeddings=embeddings, loop=loop, watch=watch)
    return Clip(time.perf_counter() - started, dict(watch.timings_s))


def _account(triton: OneAtATime, video: Path, duration_s: float, loop: Loop) -> Account:
    before = read(triton)
    triton.calls_s.clear()
    clip = _clip(triton, video, duration_s, loop)
    return Account(clip, dict(triton.calls_s), {name: work - before[name] for name, work in read(triton).items()})


def percentiles(seconds: Sequence[float] | npt.NDArray[np.float64]) -> dict[str, float]:
    """`p50_s`, `p95_s`, `p99_s`; of few values the last two are near the largest."""
    return {f"p{q}_s": float(np.percentile(np.asarray(seconds), q)) for q in PERCENTILES}


def _latency(clips: Sequence[Clip]) -> dict[str, Any]:
    return {
        **percentiles([clip.wall_s for clip in clips]),
        "mean_s": _mean(clip.wall_s for clip in clips),
        "stages_s": {stage: _mean(clip.stages_s[stage] for clip in clips) for stage in clips[0].stages_s},
    }


def _overhead(accounts: Sequence[Account], steps: int) -> dict[str, Any]:
    overhead_s, wall_s = _mean(one.overhead_s for one in accounts), _mean(one.clip.wall_s for one in accounts)
    return {
        "wall_s": wall_s,
        "networks_s": {stage: _mean(one.networks_s[stage] for one in accounts) for stage in NETWORKS},
        "calls_s": {model: _mean(one.calls_s[model] for one in accounts) for model in accounts[0].calls_s},
        "serving_s": _mean(one.serving_s for one in accounts),
        "client_s": _mean(one.overhead_s - one.serving_s for one in accounts),
        "overhead_s": overhead_s,
        "overhead_percent": 100 * overhead_s / wall_s,
        "overhead_ms_per_step": 1e3 * _mean(one.loop_overhead_s for one in accounts) / steps,
    }


def _step(accounts: Sequence[Account], steps: int) -> dict[str, float]:
    """The parts of a denoising step, in ms."""

    def of_a_step(seconds: Callable[[Account], float]) -> float:
        return 1e3 * _mean(seconds(one) for one in accounts) / steps

    wall_ms = of_a_step(lambda one: one.clip.stages_s[DENOISING])
    call_ms = of_a_step(lambda one: sum(s for model, s in one.calls_s.items() if model.startswith(NETWORKS[DENOISING])))
    network_ms = of_a_step(lambda one: one.networks_s[DENOISING])
    queue_ms = of_a_step(lambda one: sum(work.queue_s for work in one.denoising))
    copy_ms = of_a_step(lambda one: sum(work.copy_s for work in one.denoising))
    return {
        "wall_ms": wall_ms,
        "network_ms": network_ms,
        "queue_ms": queue_ms,
        "copies_ms": copy_ms,
        "grpc_ms": call_ms - network_ms - queue_ms - copy_ms,
        "client_ms": wall_ms - call_ms,
    }


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def _latency_table(document: Mapping[str, Any]) -> Table:
    found = document["latency"]
    shown = _table(
        "Latency of a clip, in seconds",
        f"Of {document['settings']['runs']} clips with each loop: of so few, p95 and p99 are near the slowest. Stages: "
        "mean, as the client times them; the prompt is embedded beside the video's features. The server's loop "
        "decodes too, under denoising.",
        ("loop", "p50", "p95", "p99", *NETWORKS),
    )
    for loop, row in found.items():
        stages = [row["stages_s"].get(stage) for stage in NETWORKS]
        seconds = [*(row[f"p{q}_s"] for q in PERCENTILES), *stages]
        shown.add_row(loop, *("" if value is None else f"{value:.3f}" for value in seconds))
    return shown


def _overhead_table(document: Mapping[str, Any]) -> Table:
    shown = _table(
        "Overhead: everything that is not a network",
        "Calls one after another. Serving: in calls, beyond the networks' computing. Client: outside of calls. Of a "
        f"step: the diffusion loop's alone. Aims at the paper's size: {OVERHEAD_PERCENT} %, {OVERHEAD_MS} ms a step.",
        (
            "loop",
            "overhead\n%",
            "overhead\nms a step",
            "overhead\nms",
            "serving\nms",
            "client\nms",
            "networks\ns",
            "clip\ns",
        ),
    )
    for loop, row in document["overhead"].items():
        milliseconds = [row[key] * 1e3 for key in ("overhead_s", "serving_s", "client_s")]
        shown.add_row(
            loop,
            f"{row['overhead_percent']:.2f}",
            f"{row['overhead_ms_per_step']:.2f}",
            *(f"{value:.1f}" for value in milliseconds),
            f"{sum(row['networks_s'].values()):.3f}",
            f"{row['wall_s']:.3f}",
        )
    return shown


def _step_table(document: Mapping[str, Any]) -> Table:
    shown = _table(
        "One denoising step, the loop in the client, in ms",
        "Queue: until the batcher lets it go, its waiting for company included. Copies: Triton's, of tensors to and "
        "from the network. gRPC: the rest of the call. Client: the sampler, between two calls.",
        ("step", "network", "queue", "copies", "gRPC", "client"),
    )
    shown.add_row(
        *(f"{document['step'][f'{key}_ms']:.2f}" for key in ("wall", "network", "queue", "copies", "grpc", "client"))
    )
    return shown


def _table(title: str, caption: str, headings: Sequence[str]) -> Table:
    shown = Table(box=box.SIMPLE_HEAD, title=title, caption=caption, caption_justify="left")
    for heading in headings:
        shown.add_column(heading, justify="left" if heading == "loop" else "right", vertical="bottom")
    return shown


def _stack(document: Mapping[str, Any]) -> Figure:
    """A bar for every loop, made of the networks by stage and, hatched, the overhead."""
    figure = Figure(figsize=(9, 3), layout="constrained")
    axes = figure.subplots()
    found = document["overhead"]
    ends = np.zeros(len(found))
    parts = {stage: [row["networks_s"][stage] for row in found.values()] for stage in NETWORKS}
    parts |= {f"overhead: {name}": [row[f"{name}_s"] for row in found.values()] for name in ("serving", "client")}
    for name, lengths in parts.items():
        hatch = "" if name in NETWORKS else "////"
        axes.barh(list(found), lengths, left=ends, label=name, edgecolor="white", hatch=hatch)
        ends += lengths
    axes.invert_yaxis()
    axes.set(xlabel="seconds", ylabel="loop", xlim=(0, None))
    figure.legend(loc="outside upper center", ncols=4, frameon=False)
    return figure
