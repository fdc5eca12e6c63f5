"""`foley-bench throughput`: concurrent requests, in a closed loop and in an open loop.

Closed loop: a number of callers, each of which sends its next request after the previous response. Open loop:
requests arrive in a Poisson process at shares of the capacity. Its latency counts from the moment at which a request
was due, so that a delay of the benchmark itself counts too.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from rich.table import Table

from foley import clip
from foley.bundle import Bundle
from foley.envelope import samples
from foley.options import GenerateOptions
from foley_bench.counters import Counters, read_counters
from foley_bench.inputs import PROMPT
from foley_bench.load_generator import Job, LoadResult, closed_loop, open_loop, poisson_arrivals
from foley_bench.machine import describe
from foley_bench.report import Report, lines, table
from foley_client.embedded import embedded_triton
from foley_pipeline.cancellation import CancelToken
from foley_pipeline.progress import StageTimer
from foley_pipeline.request import EnvelopeInput, GenerationRequest
from foley_pipeline.triton_backend import TritonBackend

CALLERS = (1, 2, 4, 8, 16)
SHARES = (0.5, 0.8, 1.0, 1.3)  # of the capacity, at which requests arrive
PERCENTILES = (50, 95)

SEED = 0  # of the arrival times
ENVELOPE = np.full(clip.CLIP_ENVELOPE, 0.1, np.float32)  # the work does not depend on its values


def measure(bundle: Bundle, clips: int, timer: StageTimer) -> Report:
    """Generate at least `clips` sounds with each number of callers, and `clips` at each arrival rate.

    Raises:
        ServerUnavailable: If the embedded Triton cannot start.
    """
    cancel = CancelToken()
    envelope = EnvelopeInput(ENVELOPE, samples(clip.CLIP_SECONDS))
    request = GenerationRequest(envelope=envelope, options=GenerateOptions(text=PROMPT))

    def job() -> None:
        backend.generate(request, cancel=cancel)

    def observe(name: str, count: int, load: Callable[[Job], LoadResult]) -> dict[str, Any]:
        before = read_counters(triton)["denoiser"]
        with timer.stage(name, count) as stage:

            def counted() -> None:
                job()
                stage.advance()

            found = load(counted)
        return _figures(found, read_counters(triton)["denoiser"] - before)

    with embedded_triton(bundle.root) as triton:
        backend = TritonBackend(triton)
        with timer.stage("warming up"):
            job()
        closed: dict[str, dict[str, Any]] = {}
        opened: dict[str, dict[str, Any]] = {}
        for callers in CALLERS:
            count = callers * math.ceil(clips / callers)  # all are busy to the end
            load = partial(closed_loop, callers=callers, count=count, cancel=cancel)
            closed[str(callers)] = observe(f"{callers} callers", count, load)
        capacity = closed[str(CALLERS[-1])]["clips_per_minute"]
        for share in SHARES:
            rate = share * capacity
            load = partial(open_loop, due_s=poisson_arrivals(clips, rate, SEED), cancel=cancel)
            opened[str(share)] = {
                "arrivals_per_minute": rate,
                **observe(f"{rate:.0f} arrivals per minute", clips, load),
            }
        sampling = backend.defaults
    document = {
        **describe(bundle),
        "settings": {
            "clips": clips,
            "sampler": sampling.sampler,
            "steps": sampling.steps,
            "guidance": sampling.guidance,
        },
        "closed": closed,
        "open": opened,
        "capacity_per_minute": capacity,
        "overload_to_capacity": opened[str(SHARES[-1])]["clips_per_minute"] / capacity,
    }
    return Report(
        title=f"Throughput: {bundle.manifest.name}",
        description=f"Sounds of 10 s for a given envelope; {sampling.sampler}, {sampling.steps} steps, guidance "
        f"{sampling.guidance:g}. Capacity (the rate with {CALLERS[-1]} callers): {capacity:.1f} clips per minute. With "
        f"{SHARES[-1]:g} times as many arrivals, {document['overload_to_capacity']:.0%} of the capacity is served.",
        document=document,
        tables=[_table(closed, opened)],
        pictures={
            "Clips per minute by number of callers.": lines(
                CALLERS, {"": [row["clips_per_minute"] for row in closed.values()]}, "callers", "clips per minute", True
            ),
            "Latency by arrival rate, from the scheduled arrival.": lines(
                [row["arrivals_per_minute"] for row in opened.values()],
                {f"p{q}": [row[f"p{q}_s"] for row in opened.values()] for q in PERCENTILES},
                "arrivals per minute",
                "latency (s)",
            ),
        },
    )


def _figures(load: LoadResult, denoiser: Counters) -> dict[str, Any]:
    return {
        "clips": len(load.latencies_s),
        "clips_per_minute": load.per_minute,
        **{f"p{q}_s": float(np.percentile(load.latencies_s, q)) for q in PERCENTILES},
        "max_s": float(load.latencies_s.max()),
        "max_in_flight": load.max_in_flight,
        "denoiser": {
            "executions": denoiser.executions,
            "rows": denoiser.rows,
            "mean_batch": denoiser.rows / denoiser.executions,
            "queue_ms": 1e3 * denoiser.queue_s / denoiser.requests,
            "batches": {str(size): denoiser.batches[size] for size in sorted(denoiser.batches)},
        },
    }


def _table(closed: Mapping[str, Any], opened: Mapping[str, Any]) -> Table:
    rows = {f"{callers} callers": row for callers, row in closed.items()}
    rows |= {f"{row['arrivals_per_minute']:.1f} arrivals per minute": row for row in opened.values()}
    return table(
        "Throughput under load",
        [
            "load",
            "clips per\nminute",
            *(f"p{q}\ns" for q in PERCENTILES),
            "max\ns",
            "max in\nflight",
            "queue per\nstep, ms",
            "mean\nbatch",
            "largest\nbatch",
        ],
        [
            [
                name,
                f"{row['clips_per_minute']:.1f}",
                *(f"{row[key]:.2f}" for key in (*(f"p{q}_s" for q in PERCENTILES), "max_s")),
                str(row["max_in_flight"]),
                f"{row['denoiser']['queue_ms']:.1f}",
                f"{row['denoiser']['mean_batch']:.2f}",
                list(row["denoiser"]["batches"])[-1],
            ]
            for name, row in rows.items()
        ],
        "Arrivals: a Poisson process; latency counts from the scheduled arrival. Clips per minute: over the whole run, "
        "including ramp-up and drain. Queue: mean, including the dynamic batcher's delay.",
    )
