"""Watching a piece of work: how far it is, how long each stage took, and whether it is to stop."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from foley.errors import Cancelled


class Watch:
    """Does nothing but count; the command line's subclass draws bars. Safe to use from several threads."""

    def __init__(self) -> None:
        self.timings_s: dict[str, float] = {}  # stage -> seconds, in the order in which stages ended
        self.elapsed_s = 0.0  # until the end of the last stage; less than their sum where some ran at the same time
        self._started = time.perf_counter()
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._callbacks: dict[object, Callable[[], object]] = {}
        self._callbacks_lock = threading.Lock()

    def cancel(self) -> None:
        """Stop the work: end the calls that wait for a server, and begin no others. Callable from any thread."""
        with self._callbacks_lock:
            self._stop.set()
            callbacks = list(self._callbacks.values())
        for callback in callbacks:  # without the lock: a callback may end a `cancelling` block of another thread
            callback()

    def check(self) -> None:
        """Raise `Cancelled` once `cancel` was called."""
        if self._stop.is_set():
            raise Cancelled("stopped")

    def sleep(self, seconds: float) -> None:
        """Wait for `seconds`. Raises `Cancelled` as soon as `cancel` is called."""
        self._stop.wait(seconds)
        self.check()

    @contextmanager
    def cancelling(self, callback: Callable[[], object]) -> Iterator[None]:
        """Let `cancel` call `callback`, in the thread that cancels, while the block runs.

        Raises:
            Cancelled: `cancel` was called before.
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
        """A watch for calls that run at the same time and must end together.

        It is cancelled when this watch is, and when the block raises; this watch is not cancelled by it. Progress and
        timings go to this watch. Enter it after the thread pool of the calls, which then ends as soon as they do.
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
        """Time what happens inside as stage `name`, made of `total` equal parts where that is known."""
        self.check()
        stage = Stage(self, name, total)
        self.on_progress(name, 0, total)
        started = time.perf_counter()
        try:
            yield stage
        finally:
            self._end(name, time.perf_counter() - started)

    def on_progress(self, name: str, done: int, total: int | None) -> None:
        """Called when `done` of `total` parts of stage `name` are done."""

    def on_end(self, name: str) -> None:
        """Called when stage `name` has ended, well or not."""

    def _end(self, name: str, seconds: float) -> None:
        self.timings_s[name] = self.timings_s.get(name, 0.0) + seconds
        self.elapsed_s = time.perf_counter() - self._started
        self.on_end(name)


class _Part(Watch):
    """See `Watch.part`."""

    def __init__(self, whole: Watch) -> None:
        super().__init__()
        self._whole = whole
        self._lock = whole._lock

    def on_progress(self, name: str, done: int, total: int | None) -> None:
        self._whole.on_progress(name, done, total)

    def _end(self, name: str, seconds: float) -> None:
        self._whole._end(name, seconds)


class Stage:
    """One stage under a `Watch`."""

    def __init__(self, watch: Watch, name: str, total: int | None) -> None:
        self._watch, self._name, self._total, self._done = watch, name, total, 0

    def advance(self, parts: int = 1) -> None:
        """Say that `parts` more are done. Raises `Cancelled` when the work is to stop."""
        with self._watch._lock:
            self._done += parts
            self._watch.on_progress(self._name, self._done, self._total)
        self._watch.check()
