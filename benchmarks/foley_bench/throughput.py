"""Many requests at once: clips a minute, the batches that they form, and how long each has to wait.

Closed loop: a number of callers, each of whom asks again as soon as the sound is there. Open loop: requests come when
they come, a Poisson process at shares of the capacity that the closed loop found. There latency counts from the moment
at which a request was due, so that no wait is forgotten because the benchmark itself was held up.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich import box
from rich.table import Table

from foley import clip, media
from foley.bundle import Bundle
from foley.envelope import samples
from foley_bench.latency import PERCENTILES, PROMPT, percentiles
from foley_bench.load import Job, Load, closed_loop, open_loop, poisson
from foley_bench.machine import describe
from foley_bench.report import Report
from foley_bench.work import Work, read
from foley_client import Foley, Watch, embedded_triton

CALLERS = (1, 2, 4, 8, 16)
SHARES = (0.5, 0.8, 1.0, 1.3)  # of the capacity, at which requests arrive
SATURATED = 0.95  # of the capacity

ENVELOPE = np.full(clip.CLIP_ENVELOPE, 0.1, np.float32)  # what it is makes no difference to the work


def measure(bundle: Bundle, clips: int, video: Path | None, seed: int, watch: Watch) -> Report:
    """At least `clips` sounds with every number of callers, and `clips` at every rate of arrival.

    A sound is made on a given envelope, or on that of `video`, found anew each time; seeded by `seed` are arrivals.

    Raises:
        MediaError: `video` is none that can be used.
        ServerUnavailable: no embedded Triton starts here.
    """
    duration_s = media.probe(video).duration_s if video else clip.CLIP_SECONDS
    work = Watch()

    def job() -> None:
        envelope = foley.predict_envelope(video, work) if video else ENVELOPE
        foley.generate(envelope, samples(duration_s), PROMPT, watch=work)

    def observe(name: str, count: int, load: Callable[[Job], Load]) -> dict[str, Any]:
        before = read(foley.triton)["denoiser"]
        with watch.stage(name, count) as stage:

            def counted() -> None:
                job()
                stage.advance()

            found = load(counted)
        return _figures(found, read(foley.triton)["denoiser"] - before)

    with embedded_triton(bundle.root) as triton:
        foley = Foley(triton)
        with watch.stage("warming up"):
            job()
        closed: dict[str, dict[str, Any]] = {}
        opened: dict[str, dict[str, Any]] = {}
        for callers in CALLERS:
            count = callers * math.ceil(clips / callers)  # all are busy to the end
            load = partial(closed_loop, callers=callers, count=count, watch=work)
            closed[str(callers)] = observe(f"{callers} at a time", count, load)
        capacity = max(found["clips_per_minute"] for found in closed.values())
        for share in SHARES:
            rate = share * capacity
            load = partial(open_loop, due_s=poisson(clips, rate, seed), watch=work)
            opened[str(share)] = {"arrivals_per_minute": rate, **observe(f"{rate:.0f} a minute", clips, load)}
        sampling = foley.defaults
    document = {
        **describe(bundle),
        "settings": {
            "clips": clips,
            "seed": seed,
            "with_video": video is not None,
            "seconds": duration_s,
            "sampler": sampling.sampler,
            "steps": sampling.steps,
            "guidance": sampling.guidance,
        },
        "closed": closed,
        "open": opened,
        "capacity_per_minute": capacity,
        "saturated_at_callers": next(
            int(callers) for callers, found in closed.items() if found["clips_per_minute"] >= SATURATED * capacity
        ),
        "overload_to_capacity": opened[str(SHARES[-1])]["clips_per_minute"] / capacity,
    }
    return Report(
        title=f"Throughput: {bundle.manifest.name}",
        lead=_lead(document),
        document=document,
        tables=[_closed_table(document), _open_table(document)],
        pictures={
            "Clips a minute by the number of callers.": _throughput(document),
            "Latency by the rate of arrival, from the moment a request was due; dotted: the capacity.": _latency(
                document
            ),
            "Sizes of the denoiser's batches, as shares of its executions.": _batches(document),
        },
    )


def _figures(load: Load, denoiser: Work) -> dict[str, Any]:
    return {
        "clips": len(load.latencies_s),
        "clips_per_minute": load.per_minute,
        **percentiles(load.latencies_s),
        "most_under_way": load.most_under_way,
        "denoiser": {
            "executions": denoiser.executions,
            "rows": denoiser.rows,
            "mean_batch": denoiser.rows / denoiser.executions,
            "queue_ms": 1e3 * denoiser.queue_s / denoiser.requests,
            "batches": {str(size): denoiser.batches[size] for size in sorted(denoiser.batches)},
        },
    }


def _lead(document: Mapping[str, Any]) -> str:
    settings, last = document["settings"], document["open"][str(SHARES[-1])]
    unit = "A video's envelope and a sound on it" if settings["with_video"] else "A sound on a given envelope"
    return (
        f"{unit}, {settings['seconds']:g} s; {settings['sampler']}, {settings['steps']} steps, guidance "
        f"{settings['guidance']:g}. Capacity: {document['capacity_per_minute']:.1f} clips a minute, of which "
        f"{document['saturated_at_callers']} at a time reach {SATURATED:.0%}. When {last['arrivals_per_minute']:.1f} "
        f"arrive every minute, {last['clips_per_minute']:.1f} are made: {document['overload_to_capacity']:.0%} of the "
        f"capacity, with up to {last['most_under_way']} of {last['clips']} under way at once."
    )


def _closed_table(document: Mapping[str, Any]) -> Table:
    shown = _table(
        "Closed loop: every caller asks again when answered",
        "Of few clips, p95 and p99 are near the slowest. Queue: of a step, mean, the batcher's waiting for company "
        "included.",
        ("at a\ntime", "clips a\nminute"),
    )
    for callers, row in document["closed"].items():
        shown.add_row(callers, f"{row['clips_per_minute']:.1f}", *_cells(row))
    return shown


def _open_table(document: Mapping[str, Any]) -> Table:
    shown = _table(
        "Open loop: requests arrive at a rate",
        "A Poisson process, at shares of the capacity. Latency from the moment a request was due. Made: over the whole "
        "time, so at low rates a little less than arrives.",
        ("share", "arrive a\nminute", "made a\nminute", "under way\nat most"),
    )
    for share, row in document["open"].items():
        rates = (row["arrivals_per_minute"], row["clips_per_minute"])
        shown.add_row(share, *(f"{rate:.1f}" for rate in rates), str(row["most_under_way"]), *_cells(row))
    return shown


def _table(title: str, caption: str, headings: tuple[str, ...]) -> Table:
    shown = Table(box=box.SIMPLE_HEAD, title=title, caption=caption, caption_justify="left")
    for heading in (*headings, *(f"p{q}\ns" for q in PERCENTILES), "queue\nms", "mean\nbatch", "largest\nbatch"):
        shown.add_column(heading, justify="right", vertical="bottom")
    return shown


def _cells(row: Mapping[str, Any]) -> list[str]:
    denoiser = row["denoiser"]
    seconds = [f"{row[f'p{q}_s']:.2f}" for q in PERCENTILES]
    return [*seconds, f"{denoiser['queue_ms']:.1f}", f"{denoiser['mean_batch']:.2f}", list(denoiser["batches"])[-1]]


def _throughput(document: Mapping[str, Any]) -> Figure:
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(list(CALLERS), [row["clips_per_minute"] for row in document["closed"].values()], marker="o")
    axes.set(xlabel="requests at a time", ylabel="clips a minute", ylim=(0, None), xscale="log")
    axes.set_xticks(list(CALLERS), labels=[str(callers) for callers in CALLERS])
    axes.minorticks_off()
    return figure


def _latency(document: Mapping[str, Any]) -> Figure:
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    rows = list(document["open"].values())
    for q in PERCENTILES:
        axes.plot([row["arrivals_per_minute"] for row in rows], [row[f"p{q}_s"] for row in rows], "o-", label=f"p{q}")
    axes.axvline(document["capacity_per_minute"], color="0.5", linestyle=":")
    axes.set(xlabel="arrivals a minute", ylabel="latency (s)", ylim=(0, None))
    axes.legend(frameon=False)
    return figure


def _batches(document: Mapping[str, Any]) -> Figure:
    loads = {f"{callers} at a time": row for callers, row in document["closed"].items()}
    loads |= {f"{row['arrivals_per_minute']:.0f} a minute": row for row in document["open"].values()}
    rows = math.ceil(len(loads) / 3)
    figure = Figure(figsize=(9, 1 + 2 * rows), layout="constrained")
    grid = figure.subplots(rows, 3, sharex=True, sharey=True, squeeze=False).flat
    for axes, (name, row) in zip(grid, loads.items(), strict=False):
        sizes = [int(size) for size in row["denoiser"]["batches"]]
        shares = np.array(list(row["denoiser"]["batches"].values())) / row["denoiser"]["executions"]
        axes.bar(sizes, shares)
        axes.set_title(name, fontsize="medium")
    figure.supxlabel("rows in a batch")
    figure.supylabel("share of executions")
    return figure
