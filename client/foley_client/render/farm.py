"""Schedules rows on the workers of an engine, with retries, back-off and a circuit breaker for each worker."""

import time
from collections import Counter, deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from dataclasses import dataclass, field
from typing import Literal

from foley.profiles import PROFILES
from foley_client.render.engine import Engine
from foley_client.render.row import Row
from foley_client.render.task import Done, Failed, Predicted, Task

MAX_FAILURES = 3  # after which a row is not retried
MAX_LOSSES = 10  # of workers, after which a row is not retried; a loss is rarely caused by the row
MAX_BACKOFF_S = 30.0
_TICK_S = 0.5


@dataclass(frozen=True)
class Event:
    """Change of state of a row.

    Attributes:
        kind: `started`; `retry`: the attempt failed and the row is retried; `done`, `skipped` and `failed` are final.
        row: The row.
        worker: The worker on which it was started.
        attempts: Number of failed attempts so far, lost workers included.
        outcome: Outcome of the attempt; None for `started`.
    """

    kind: Literal["started", "retry", "done", "skipped", "failed"]
    row: Row
    worker: str
    attempts: int
    outcome: Done | Failed | None = None


def render_all(rows: Sequence[Row], engine: Engine, force: bool = False) -> Generator[Event, None, None]:
    """Render every row once, and retry failed rows after a back-off, on another worker if possible.

    Of rows that share a video, one is rendered first; the others wait for its envelope. Closing the generator stops the
    running rows.

    Args:
        rows: The rows, started in this order.
        engine: Runs the rows.
        force: Whether to render rows whose results exist.

    Yields:
        The changes of state of all rows.

    Raises:
        ServerUnavailable: No server could be started.
    """
    videos, workers = _Videos(rows), _Workers(engine)
    pending, retries = deque(_Item(row) for row in rows), list[_Item]()
    running: dict[Future[Done | Failed], tuple[_Item, str]] = {}
    try:
        while pending or retries or running:
            workers.refresh()
            for item, worker in _startable(pending, retries, workers, videos):
                task = Task(item.row, force, videos.predicted(item.row))
                running[_submit(engine, worker, task)] = item, worker
                yield Event("started", item.row, worker, item.attempts)
            ended = wait(running, _TICK_S, FIRST_COMPLETED).done if running else _sleep()
            for future in [future for future in running if future in ended]:  # in start order
                item, worker = running.pop(future)
                outcome = _outcome(future, worker)
                workers.finish(worker, outcome)
                is_retried = isinstance(outcome, Failed) and item.record_failure(outcome, worker)
                released = videos.after(item.row, outcome, last=not is_retried)
                # a failed row waits for a worker other than those it failed on; it must not block other rows
                retries += [other for other in released if other.failed_on]
                pending.extendleft(reversed([other for other in released if not other.failed_on]))
                if is_retried:
                    retries.append(item)
                yield Event(_kind(outcome, is_retried), item.row, worker, item.attempts, outcome)
    finally:
        if running:
            engine.stop()
            wait(running)


def _kind(outcome: Done | Failed, is_retried: bool) -> Literal["retry", "done", "skipped", "failed"]:
    if isinstance(outcome, Failed):
        return "retry" if is_retried else "failed"
    return "skipped" if outcome.skipped else "done"


def _submit(engine: Engine, worker: str, task: Task) -> "Future[Done | Failed]":
    """Submit a task; if the engine raises, return a future with the error."""
    try:
        return engine.submit(worker, task)
    except Exception as error:
        refused: Future[Done | Failed] = Future()
        refused.set_exception(error)
        return refused


def _outcome(future: "Future[Done | Failed]", worker: str) -> Done | Failed:
    """Return the outcome of a task; a future that was cancelled or has an exception means that the worker was lost."""
    error = CancelledError() if future.cancelled() else future.exception()
    if error:
        return Failed(type(error).__name__, f"{worker} could not run it ({error})", worker_lost=True)
    return future.result()


def _sleep() -> set[Future[Done | Failed]]:
    time.sleep(_TICK_S)
    return set()


def _backoff_s(failures: int) -> float:
    """Return the delay after the given number of consecutive failures: 1, 2, 4, ... s."""
    return min(2.0 ** (failures - 1), MAX_BACKOFF_S)


@dataclass(eq=False)
class _Item:
    """A row that has not ended.

    Attributes:
        row: The row.
        attempts: Number of failed attempts, losses included.
        losses: Number of attempts that failed because the worker was lost.
        retry_at_s: `time.monotonic()` before which it is not retried.
        failed_on: Workers on which it failed.
    """

    row: Row
    attempts: int = 0
    losses: int = 0
    retry_at_s: float = 0.0
    failed_on: set[str] = field(default_factory=set)

    def record_failure(self, outcome: Failed, worker: str) -> bool:
        """Record a failed attempt, and return whether the row is to be retried."""
        self.attempts += 1
        self.losses += outcome.worker_lost
        failures = self.attempts - self.losses
        if not outcome.worker_lost:
            self.failed_on.add(worker)
            self.retry_at_s = time.monotonic() + _backoff_s(failures)
        return not outcome.permanent and failures < MAX_FAILURES and self.losses < MAX_LOSSES


class _Workers:
    """Free capacity of the workers, with a circuit breaker for each: exponential back-off, then one probe row."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._capacity: dict[str, int] = {}
        self._running: Counter[str] = Counter()
        self._losses: Counter[str] = Counter()  # consecutive
        self._blocked_until_s: dict[str, float] = {}

    def refresh(self) -> None:
        """Update the workers and their capacity from the engine."""
        self._capacity = dict(self._engine.workers())

    def acquire(self, avoided: set[str]) -> str | None:
        """Reserve capacity for one row on the worker with the most free capacity.

        Args:
            avoided: Workers that are used only if there are no others.

        Returns:
            The worker, or None if there is no free capacity.
        """
        allowed = self._capacity.keys() - avoided or self._capacity.keys()
        free = {worker: self._free(worker) for worker in sorted(allowed)}
        freest = max(free, key=free.__getitem__, default=None)
        if freest is None or free[freest] <= 0:
            return None
        self._running[freest] += 1
        return freest

    def release(self, worker: str) -> None:
        """Release capacity reserved with `acquire`."""
        self._running[worker] -= 1

    def finish(self, worker: str, outcome: Done | Failed) -> None:
        """Release the capacity of an attempt that has ended, and update the circuit breaker of the worker."""
        self.release(worker)
        now = time.monotonic()
        if not (isinstance(outcome, Failed) and outcome.worker_lost):
            self._losses[worker] = 0
        elif now >= self._blocked_until_s.get(worker, 0.0):  # rows lost at the same time count as one loss
            self._losses[worker] += 1
            self._blocked_until_s[worker] = now + _backoff_s(self._losses[worker])

    def _free(self, worker: str) -> int:
        if time.monotonic() < self._blocked_until_s.get(worker, 0.0):
            return 0
        return (1 if self._losses[worker] else self._capacity[worker]) - self._running[worker]


class _Videos:
    """Coordinates rows that share a video: one predicts the envelope, the others wait for it."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._left = Counter(map(_video, rows))
        self._waiting: dict[object, list[_Item]] = {}
        self._predicted: dict[object, Predicted] = {}

    def admit(self, item: _Item) -> bool:
        """Return whether a row may start; if not, keep it until `after` returns it."""
        video = _video(item.row)
        if video is None or self._left[video] == 1 or video in self._predicted:
            return True
        if video in self._waiting:
            self._waiting[video].append(item)
            return False
        self._waiting[video] = []
        return True

    def predicted(self, row: Row) -> Predicted | None:
        """Return the envelope that was predicted for another row with this video, if any."""
        return self._predicted.get(_video(row))

    def after(self, row: Row, outcome: Done | Failed, last: bool) -> list[_Item]:
        """Record the end of an attempt, and return the rows that waited for it.

        Args:
            row: The row of the attempt.
            outcome: Outcome of the attempt.
            last: Whether the row is not retried.
        """
        video = _video(row)
        self._left[video] -= last
        if isinstance(outcome, Done) and outcome.predicted:
            self._predicted[video] = outcome.predicted
        if not self._left[video]:
            self._predicted.pop(video, None)
        return self._waiting.pop(video, [])


def _video(row: Row) -> object:
    """Return the key, video and optical flow, that rows with the same envelope share; None if the envelope is given."""
    return None if row.envelope else (row.video, row.flow or PROFILES[row.profile].flow or "default")


def _startable(
    pending: deque[_Item], retries: list[_Item], workers: _Workers, videos: _Videos
) -> Iterator[tuple[_Item, str]]:
    """Yield the rows that may start, retries first, each with the worker reserved for it."""
    now = time.monotonic()
    for item in [item for item in retries if item.retry_at_s <= now]:
        if worker := workers.acquire(item.failed_on):
            retries.remove(item)
            yield from _admitted(item, worker, workers, videos)
    while pending and (worker := workers.acquire(set())):
        yield from _admitted(pending.popleft(), worker, workers, videos)


def _admitted(item: _Item, worker: str, workers: _Workers, videos: _Videos) -> Iterator[tuple[_Item, str]]:
    """Yield the row and its worker if the row may start; otherwise release the worker."""
    if videos.admit(item):
        yield item, worker
    else:
        workers.release(worker)
