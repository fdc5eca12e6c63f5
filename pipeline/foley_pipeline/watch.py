"""Watching a piece of work: how far it is, how long each stage took, and whether it is to stop."""

import threading
import time
from collections.abc import Iterator
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

    def cancel(self) -> None:
        """Ask the work to stop before its next call to the server."""
        self._stop.set()

    def check(self) -> None:
        """Raise `Cancelled` once `cancel` was called."""
        if self._stop.is_set():
            raise Cancelled("stopped")

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
            ended = time.perf_counter()
            self.timings_s[name] = self.timings_s.get(name, 0.0) + ended - started
            self.elapsed_s = ended - self._started
            self.on_end(name)

    def on_progress(self, name: str, done: int, total: int | None) -> None:
        """Called when `done` of `total` parts of stage `name` are done."""

    def on_end(self, name: str) -> None:
        """Called when stage `name` has ended, well or not."""


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
