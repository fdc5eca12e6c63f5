"""`foley-bench throughput`: many requests at once, in a closed loop and in an open loop.

Closed loop: a number of callers, each of which sends the next request when the last one is answered. Open loop:
requests arrive in a Poisson process at shares of the capacity. Its latency counts from the moment at which a request
was due, so that a delay of the benchmark itself counts too.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from foley import clip, media
from foley.bundle import Bundle
from foley.envelope import samples
from foley_bench.inputs import PROMPT
from foley_bench.load import Job, Load, closed_loop, open_loop, poisson
from foley_bench.machine import describe
from foley_bench.report import Report, lines, table
from foley_bench.work import Work, read
from foley_client import Foley, Prompt, Watch, embedded_triton

CALLERS = (1, 2, 4, 8, 16)
SHARES = (0.5, 0.8, 1.0, 1.3)  # of the capacity, at which requests arrive
PERCENTILES = (50, 95)

ENVELOPE = np.full(clip.CLIP_ENVELOPE, 0.1, np.float32)  # the work does not depend on its values


def measure(bundle: Bundle, clips: int, video: Path | None, seed: int, watch: Watch) -> Report:
    """Make at least `clips` sounds with each number of callers, and `clips` at each rate of arrival.

    Args:
        bundle: the bundle that is served.
        clips: number of sounds per level.
        video: a sound is made on its envelope, predicted for each sound; None: on a given envelope.
        seed: seed of the arrival times.
        watch: receives the progress.

    Raises:
        MediaError: `video` is none that can be used.
        ServerUnavailable: no embedded Triton starts here.
    """
    duration_s = media.probe(video).duration_s if video else clip.CLIP_SECONDS
    work = Watch()

    def job() -> None:
        envelope = foley.predict_envelope(video, work) if video else ENVELOPE
        foley.generate(envelope, samples(duration_s), Prompt(PROMPT), watch=work)

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
        capacity = closed[str(CALLERS[-1])]["clips_per_minute"]
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
        "overload_to_capacity": opened[str(SHARES[-1])]["clips_per_minute"] / capacity,
    }
    unit = "A video's envelope and a sound on it" if video else "A sound on a given envelope"
    return Report(
        title=f"Throughput: {bundle.manifest.name}",
        lead=f"{unit}, {duration_s:g} s; {sampling.sampler}, {sampling.steps} steps, guidance {sampling.guidance:g}. "
        f"Capacity, the rate with {CALLERS[-1]} callers: {capacity:.1f} clips a minute. When {SHARES[-1]:g} times as "
        f"many arrive, {document['overload_to_capacity']:.0%} of the capacity is served.",
        document=document,
        tables=[_table(closed, opened)],
        pictures={
            "Clips a minute by the number of callers.": lines(
                CALLERS, {"": [row["clips_per_minute"] for row in closed.values()]}, "callers", "clips a minute", True
            ),
            "Latency by the rate of arrival, from the moment a request was due.": lines(
                [row["arrivals_per_minute"] for row in opened.values()],
                {f"p{q}": [row[f"p{q}_s"] for row in opened.values()] for q in PERCENTILES},
                "arrivals a minute",
                "latency (s)",
            ),
        },
    )


def _figures(load: Load, denoiser: Work) -> dict[str, Any]:
    return {
        "clips": len(load.latencies_s),
        "clips_per_minute": load.per_minute,
        **{f"p{q}_s": float(np.percentile(load.latencies_s, q)) for q in PERCENTILES},
        "max_s": float(load.latencies_s.max()),
        "most_in_flight": load.most_in_flight,
        "denoiser": {
            "executions": denoiser.executions,
            "rows": denoiser.rows,
            "mean_batch": denoiser.rows / denoiser.executions,
            "queue_ms": 1e3 * denoiser.queue_s / denoiser.requests,
            "batches": {str(size): denoiser.batches[size] for size in sorted(denoiser.batches)},
        },
    }


def _table(closed: Mapping[str, Any], opened: Mapping[str, Any]) -> Table:
    rows = {f"{callers} at a time": row for callers, row in closed.items()}
    rows |= {f"{row['arrivals_per_minute']:.1f} arrive a minute": row for row in opened.values()}
    return table(
        "Requests at once",
        [
            "requests",
            "clips a\nminute",
            *(f"p{q}\ns" for q in PERCENTILES),
            "most\ns",
            "in flight\nat most",
            "queue of\na step, ms",
            "mean\nbatch",
            "largest\nbatch",
        ],
        [
            [
                name,
                f"{row['clips_per_minute']:.1f}",
                *(f"{row[key]:.2f}" for key in (*(f"p{q}_s" for q in PERCENTILES), "max_s")),
                str(row["most_in_flight"]),
                f"{row['denoiser']['queue_ms']:.1f}",
                f"{row['denoiser']['mean_batch']:.2f}",
                list(row["denoiser"]["batches"])[-1],
            ]
            for name, row in rows.items()
        ],
        "Arrivals: a Poisson process, latency from the moment a request was due. Clips a minute: over the whole run, "
        "ramp-up and drain included. Queue: mean, the batcher's wait for other requests included.",
    )
