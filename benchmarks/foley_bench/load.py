"""Asking a server for many things at once, with a number of callers or at a rate."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from foley_client import Watch

Job = Callable[[], object]
Seconds = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Load:
    """When requests were due, and how long after that they were answered, in seconds, [requests] each."""

    due_s: Seconds
    latencies_s: Seconds

    @property
    def per_minute(self) -> float:
        """Answers, over the time from the first request to the last answer: load that builds up and drains counts."""
        done_s = self.due_s + self.latencies_s
        return float(60 * len(done_s) / (done_s.max() - self.due_s.min()))

    @property
    def most_under_way(self) -> int:
        """The largest number of requests that waited for their answer at once."""
        done_s = self.due_s + self.latencies_s
        return max(int(np.sum((self.due_s <= due) & (done_s > due))) for due in self.due_s)


def closed_loop(job: Job, callers: int, count: int, watch: Watch) -> Load:
    """`count` requests by `callers`, each of whom asks again when answered; `watch` is what the jobs run under."""
    started = time.perf_counter()

    def ask() -> tuple[float, float]:
        asked = time.perf_counter()
        job()
        return asked - started, time.perf_counter() - asked

    with ThreadPoolExecutor(callers) as pool:
        return _collect(pool, [pool.submit(ask) for _ in range(count)], watch)


def open_loop(job: Job, due_s: Seconds, watch: Watch) -> Load:
    """Requests at the times `due_s`, counted from now, whether those before are answered or not."""
    started = time.perf_counter()

    def ask(due: float) -> tuple[float, float]:
        time.sleep(max(0.0, started + due - time.perf_counter()))
        job()
        return due, time.perf_counter() - started - due

    with ThreadPoolExecutor(len(due_s)) as pool:  # one each: nobody waits for another's thread
        return _collect(pool, [pool.submit(ask, due) for due in due_s.tolist()], watch)


def poisson(count: int, per_minute: float, seed: int) -> Seconds:
    """Times of `count` arrivals, the first at 0, of a Poisson process; stretched so that their rate is exact."""
    gaps = np.random.default_rng(seed).exponential(size=count - 1)
    due = np.concatenate([[0.0], np.cumsum(gaps)])
    scaled: Seconds = due / due[-1] * (count - 1) * 60 / per_minute
    return scaled


def _collect(pool: ThreadPoolExecutor, calls: Sequence["Future[tuple[float, float]]"], watch: Watch) -> Load:
    try:
        for call in wait(calls, return_when=FIRST_EXCEPTION).done:
            call.result()
    except BaseException:
        watch.cancel()  # one failed or the user stopped: those under way stop before their next step
        pool.shutdown(cancel_futures=True)
        raise
    due_s, latencies_s = np.array([call.result() for call in calls]).T
    return Load(due_s, latencies_s)
