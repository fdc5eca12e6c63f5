"""Schedules rows on the places of an engine, with retries, back-off and a circuit breaker for each place."""

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

ATTEMPTS = 3  # failures after which a row is given up
LOST_ATTEMPTS = 10  # lost servers after which a row is given up: a loss is rarely caused by the row
LONGEST_PAUSE_S = 30.0
_TICK_S = 0.5


@dataclass(frozen=True)
class Event:
    """Change of state of a row.

    Attributes:
        kind: `started`; `retry`: the attempt failed and the row is retried; `done`, `skipped` and `failed` are final.
        row: The row.
        place: Where it was started.
        attempts: Number of failed attempts so far, lost servers included.
        outcome: Outcome of the attempt; None for `started`.
    """

    kind: Literal["started", "retry", "done", "skipped", "failed"]
    row: Row
    place: str
    attempts: int
    outcome: Done | Failed | None = None


def render_all(rows: Sequence[Row], engine: Engine, force: bool = False) -> Generator[Event, None, None]:
    """Render every row once, and retry failed rows after a back-off, at another place if possible.

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
    videos, places = _Videos(rows), _Places(engine)
    fresh, paused = deque(_Item(row) for row in rows), list[_Item]()
    running: dict[Future[Done | Failed], tuple[_Item, str]] = {}
    try:
        while fresh or paused or running:
            places.refresh()
            for item, place in _startable(fresh, paused, places, videos):
                task = Task(item.row, force, videos.predicted(item.row))
                running[_submit(engine, place, task)] = item, place
                yield Event("started", item.row, place, item.attempts)
            ended = wait(running, _TICK_S, FIRST_COMPLETED).done if running else _pause()
            for future in [one for one in running if one in ended]:  # in start order
                item, place = running.pop(future)
                outcome = _outcome(future, place)
                places.give_back(place, outcome)
                again = isinstance(outcome, Failed) and item.again(outcome, place)
                released = videos.after(item.row, outcome, last=not again)
                # a failed row waits until a place other than those it failed at is free; it must not block other rows
                paused += [one for one in released if one.failed_at]
                fresh.extendleft(reversed([one for one in released if not one.failed_at]))
                if again:
                    paused.append(item)
                yield Event(_kind(outcome, again), item.row, place, item.attempts, outcome)
    finally:
        if running:
            engine.stop()
            wait(running)


def _kind(outcome: Done | Failed, again: bool) -> Literal["retry", "done", "skipped", "failed"]:
    if isinstance(outcome, Failed):
        return "retry" if again else "failed"
    return "skipped" if outcome.skipped else "done"


def _submit(engine: Engine, place: str, task: Task) -> "Future[Done | Failed]":
    """Submit a task; if the engine raises, return a future with the error."""
    try:
        return engine.submit(place, task)
    except Exception as error:
        refused: Future[Done | Failed] = Future()
        refused.set_exception(error)
        return refused


def _outcome(future: "Future[Done | Failed]", place: str) -> Done | Failed:
    """Return the outcome of a task; a future that was cancelled or has an exception means that the place was lost."""
    error = CancelledError() if future.cancelled() else future.exception()
    if error:
        return Failed(type(error).__name__, f"{place} could not run it ({error})", lost=True)
    return future.result()


def _pause() -> set[Future[Done | Failed]]:
    time.sleep(_TICK_S)
    return set()


@dataclass(eq=False)
class _Item:
    """A row that has not ended.

    Attributes:
        row: The row.
        attempts: Number of failed attempts, losses included.
        losses: Number of attempts that ended because the place was lost.
        due_s: `time.monotonic()` before which it is not retried.
        failed_at: Places where it failed.
    """

    row: Row
    attempts: int = 0
    losses: int = 0
    due_s: float = 0.0
    failed_at: set[str] = field(default_factory=set)

    def again(self, outcome: Failed, place: str) -> bool:
        """Record a failed attempt, and return whether the row is to be retried."""
        self.attempts += 1
        self.losses += outcome.lost
        failures = self.attempts - self.losses
        if not outcome.lost:
            self.failed_at.add(place)
        self.due_s = time.monotonic() + min(2.0 ** (failures - 1), LONGEST_PAUSE_S) if not outcome.lost else 0.0
        return failures < ATTEMPTS and self.losses < LOST_ATTEMPTS


class _Places:
    """Free capacity of the places, with a circuit breaker for each: exponential back-off, then one probe row."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._room: dict[str, int] = {}
        self._running: Counter[str] = Counter()
        self._losses: Counter[str] = Counter()  # consecutive
        self._closed_until_s: dict[str, float] = {}

    def refresh(self) -> None:
        """Update the places and their capacity from the engine."""
        self._room = dict(self._engine.places())

    def take(self, avoided: set[str]) -> str | None:
        """Reserve capacity for one row at the place with the most free capacity.

        Args:
            avoided: Places that are used only if there are no others.

        Returns:
            The place, or None if there is no free capacity.
        """
        allowed = self._room.keys() - avoided or self._room.keys()
        room = {place: self._free(place) for place in sorted(allowed)}
        best = max(room, key=room.__getitem__, default=None)
        if best is None or room[best] <= 0:
            return None
        self._running[best] += 1
        return best

    def release(self, place: str) -> None:
        """Release capacity reserved with `take`."""
        self._running[place] -= 1

    def give_back(self, place: str, outcome: Done | Failed) -> None:
        """Release the capacity of an attempt that has ended, and update the circuit breaker of the place."""
        self.release(place)
        now = time.monotonic()
        if not (isinstance(outcome, Failed) and outcome.lost):
            self._losses[place] = 0
        elif now >= self._closed_until_s.get(place, 0.0):  # rows lost at the same time count as one loss
            self._losses[place] += 1
            self._closed_until_s[place] = now + min(2.0 ** (self._losses[place] - 1), LONGEST_PAUSE_S)

    def _free(self, place: str) -> int:
        if time.monotonic() < self._closed_until_s.get(place, 0.0):
            return 0
        return (1 if self._losses[place] else self._room[place]) - self._running[place]


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
    fresh: deque[_Item], paused: list[_Item], places: _Places, videos: _Videos
) -> Iterator[tuple[_Item, str]]:
    """Yield the rows that may start, retries first, each with the place reserved for it."""
    now = time.monotonic()
    for item in [item for item in paused if item.due_s <= now]:
        if place := places.take(item.failed_at):
            paused.remove(item)
            yield from _admitted(item, place, places, videos)
    while fresh and (place := places.take(set())):
        yield from _admitted(fresh.popleft(), place, places, videos)


def _admitted(item: _Item, place: str, places: _Places, videos: _Videos) -> Iterator[tuple[_Item, str]]:
    """Yield the row and its place if the row may start; otherwise release the place."""
    if videos.admit(item):
        yield item, place
    else:
        places.release(place)
