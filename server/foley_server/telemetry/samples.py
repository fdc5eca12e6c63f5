"""Values that take time to read, sampled in the background for gauges, which must not wait."""

import asyncio
import logging
import shutil
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path

log = logging.getLogger(__name__)

INTERVAL_S = 5.0
MAX_AGE_S = 60.0  # older values are not reported


class Snapshot:
    """The latest values of an asynchronous function that may be slow or fail, such as a query of a database.

    Args:
        name: What is read, for the log.
        read: Returns values by name.
    """

    def __init__(self, name: str, read: Callable[[], Awaitable[Mapping[str, float]]]) -> None:
        self._name, self._read = name, read
        self._values: Mapping[str, float] = {}
        self._read_at = 0.0

    async def run(self) -> None:
        """Read the values every 5 s, until cancelled. A read that takes longer than that is cancelled."""
        is_failing = False
        while True:
            try:
                self._values = await asyncio.wait_for(self._read(), INTERVAL_S)
                self._read_at, is_failing = time.monotonic(), False
            except Exception as error:  # whatever it is, this task continues
                if not is_failing:
                    log.warning("metrics of %s cannot be read: %s", self._name, str(error) or type(error).__name__)
                is_failing = True
            await asyncio.sleep(INTERVAL_S)

    def values(self) -> Mapping[str, float]:
        """Return the latest values; none if they are older than a minute. Thread-safe."""
        return self._values if time.monotonic() - self._read_at < MAX_AGE_S else {}


class LoopLag:
    """Measures by how much the event loop is late."""

    def __init__(self) -> None:
        self._lags: tuple[float, ...] = ()
        self._due = float("inf")

    async def run(self) -> None:
        """Measure every half second, until cancelled."""
        interval_s = 0.5
        while True:
            self._due = time.monotonic() + interval_s
            await asyncio.sleep(interval_s)
            self._lags = (*self._lags[-round(MAX_AGE_S / interval_s) :], self.now_s())

    def now_s(self) -> float:
        """Return by how many seconds the loop is late now."""
        return max(0.0, time.monotonic() - self._due)

    def worst_s(self) -> float:
        """Return the largest lag of the last minute, in seconds, including a present one. Thread-safe."""
        return max((*self._lags, self.now_s()))


class FreeSpace:
    """Free space of a folder's disk, read in a thread of its own: a file system that hangs blocks nothing else."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._free: int | None = None
        self._read_at = 0.0
        self._closed = threading.Event()
        threading.Thread(target=self._run, name="free space", daemon=True).start()

    def bytes(self) -> int | None:
        """Return the free space, in bytes; None if it could not be read for a minute. Thread-safe."""
        return self._free if time.monotonic() - self._read_at < MAX_AGE_S else None

    def close(self) -> None:
        """Stop reading."""
        self._closed.set()

    def _run(self) -> None:
        while True:
            with suppress(OSError):
                self._free, self._read_at = shutil.disk_usage(self._folder).free, time.monotonic()
            if self._closed.wait(INTERVAL_S):
                return


@asynccontextmanager
async def sampling(*samples: Snapshot | LoopLag) -> AsyncIterator[None]:
    """Sample while the context is active."""
    tasks = [asyncio.create_task(one.run()) for one in samples]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
