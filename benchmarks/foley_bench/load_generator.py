"""Load generators: a closed loop of callers, and an open loop of arrivals."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from foley_pipeline.cancellation import CancelToken

Job = Callable[[], object]
Seconds = npt.NDArray[np.float64]


@dataclass(frozen=True)
class LoadResult:
    """Due times and latencies of requests, in seconds, [requests] each."""

    due_s: Seconds
    latencies_s: Seconds

    @property
    def per_minute(self) -> float:
        """Requests per minute from the first due time to the last response, including ramp-up and drain."""
        done_s = self.due_s + self.latencies_s
        return float(60 * len(done_s) / (done_s.max() - self.due_s.min()))

    @property
    def max_in_flight(self) -> int:
        """Maximum number of requests in flight."""
        done_s = self.due_s + self.latencies_s
        return max(int(np.sum((self.due_s <= due) & (done_s > due))) for due in self.due_s)


def closed_loop(job: Job, callers: int, count: int, cancel: CancelToken) -> LoadResult:
    """Send `count` requests from `callers` concurrent callers; `cancel` cancels the jobs."""
    started = time.perf_counter()

    def request() -> tuple[float, float]:
        sent = time.perf_counter()
        job()
        return sent - started, time.perf_counter() - sent

    with ThreadPoolExecutor(callers) as pool:
        return _collect(pool, [pool.submit(request) for _ in range(count)], cancel)


def open_loop(job: Job, due_s: Seconds, cancel: CancelToken) -> LoadResult:
    """Send requests at the times `due_s` from now, regardless of outstanding ones."""
    started = time.perf_counter()

    def request(due: float) -> tuple[float, float]:
        time.sleep(max(0.0, started + due - time.perf_counter()))
        job()
        return due, time.perf_counter() - started - due

    with ThreadPoolExecutor(len(due_s)) as pool:  # one each, so that no request waits for a thread
        return _collect(pool, [pool.submit(request, due) for due in due_s.tolist()], cancel)


def poisson_arrivals(count: int, per_minute: float, seed: int) -> Seconds:
    """Return `count` arrival times of a Poisson process in seconds, from 0, scaled to the exact rate."""
    gaps = np.random.default_rng(seed).exponential(size=count - 1)
    due = np.concatenate([[0.0], np.cumsum(gaps)])
    scaled: Seconds = due / due[-1] * (count - 1) * 60 / per_minute
    return scaled


def _collect(
    pool: ThreadPoolExecutor, calls: Sequence["Future[tuple[float, float]]"], cancel: CancelToken
) -> LoadResult:
    try:
        for call in wait(calls, return_when=FIRST_EXCEPTION).done:
            call.result()
    except BaseException:
        cancel.cancel()  # one failed or the user stopped: those in flight stop before their next step
        pool.shutdown(cancel_futures=True)
        raise
    due_s, latencies_s = np.array([call.result() for call in calls]).T
    return LoadResult(due_s, latencies_s)
