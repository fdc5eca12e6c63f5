"""Progress, timings and cancellation of a computation."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from foley.errors import Cancelled


class Watch:
    """Progress, timings and cancellation of one computation. Thread-safe.

    This class does not display progress; the subclass of the command line shows progress bars.

    Attributes:
        timings_s: Seconds per stage, in the order in which the stages ended.
        elapsed_s: Seconds until the end of the last stage; less than the sum of `timings_s` if stages overlap.
    """

    def __init__(self) -> None:
        self.timings_s: dict[str, float] = {}
        self.elapsed_s = 0.0
        self._started = time.perf_counter()
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._callbacks: dict[object, Callable[[], object]] = {}
        self._callbacks_lock = threading.Lock()

    def cancel(self) -> None:
        """Cancel the computation: abort calls that wait for a server, and start no new ones. Thread-safe."""
        with self._callbacks_lock:
            self._stop.set()
            callbacks = list(self._callbacks.values())
        for callback in callbacks:  # without the lock, as a callback may end another thread's `cancelling` block
            callback()

    def check(self) -> None:
        """Check for cancellation.

        Raises:
            Cancelled: `cancel` was called.
        """
        if self._stop.is_set():
            raise Cancelled("stopped")

    def sleep(self, seconds: float) -> None:
        """Sleep for `seconds`.

        Raises:
            Cancelled: `cancel` was called, before or during the sleep.
        """
        self._stop.wait(seconds)
        self.check()

    @contextmanager
    def cancelling(self, callback: Callable[[], object]) -> Iterator[None]:
        """Register `callback` for the duration of the block; `cancel` calls it in the thread that cancels.

        Raises:
            Cancelled: `cancel` was already called.
        """
        key = object()
        with self._callbacks_lock:
            self.check()
            self._callbacks[key] = callback
        try:
            yield
        finally:
            with self._callbacks_lock:
                del self._callbacks[key]

    @contextmanager
    def part(self) -> Iterator["Watch"]:
        """Create a child watch for concurrent calls that are cancelled together.

        The child is cancelled when this watch is cancelled or when the block raises. Cancelling the child does not
        cancel this watch. Progress and timings are reported to this watch. Enter it after the thread pool of the calls,
        so that the calls are cancelled before the pool waits for them.

        Yields:
            The child watch.
        """
        part = _Part(self)
        with self.cancelling(part.cancel):
            try:
                yield part
            except BaseException:
                part.cancel()
                raise

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator["Stage"]:
        """Time the block as a stage.

        Args:
            name: Name of the stage.
            total: Number of equal parts, or None if unknown.

        Yields:
            The stage, for reporting progress.

        Raises:
            Cancelled: `cancel` was already called.
        """
        self.check()
        stage = Stage(self, name, total)
        self.on_progress(name, 0, total)
        started = time.perf_counter()
        try:
            yield stage
        finally:
            self._end(name, time.perf_counter() - started)

    def on_progress(self, name: str, done: int, total: int | None) -> None:
        """Report that `done` of `total` parts of stage `name` are complete; for subclasses."""

    def on_end(self, name: str) -> None:
        """Report that stage `name` has ended, successfully or not; for subclasses."""

    def _end(self, name: str, seconds: float) -> None:
        self.timings_s[name] = self.timings_s.get(name, 0.0) + seconds
        self.elapsed_s = time.perf_counter() - self._started
        self.on_end(name)


class _Part(Watch):
    """A child watch; see `Watch.part`."""

    def __init__(self, whole: Watch) -> None:
        super().__init__()
        self._whole = whole
        self._lock = whole._lock

    def on_progress(self, name: str, done: int, total: int | None) -> None:
        self._whole.on_progress(name, done, total)

    def _end(self, name: str, seconds: float) -> None:
        self._whole._end(name, seconds)


class Stage:
    """Progress of one stage of a `Watch`."""

    def __init__(self, watch: Watch, name: str, total: int | None) -> None:
        self._watch, self._name, self._total, self._done = watch, name, total, 0

    def advance(self, parts: int = 1) -> None:
        """Report that `parts` more parts are complete.

        Raises:
            Cancelled: The watch was cancelled.
        """
        with self._watch._lock:
            self._done += parts
            self._watch.on_progress(self._name, self._done, self._total)
        self._watch.check()
