"""Admission control: a bounded FIFO queue. Requests beyond its capacity are rejected at once."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

from foley.errors import Overloaded


class Line:
    """Runs up to `running` requests concurrently and queues up to `waiting` more, first in, first out.

    Not thread-safe: use it from one event loop.

    Attributes:
        admitted: Number of admitted requests.
        mean_s: Exponential moving average of the duration of a turn, with weight 0.2 for the latest.
    """

    def __init__(self, running: int, waiting: int) -> None:
        self._size = running + waiting
        self._free = running
        self._queue: deque[tuple[asyncio.Future[None], Callable[[int], None]]] = deque()
        self.admitted = 0
        self.mean_s = 10.0  # initial estimate

    @property
    def waiting(self) -> int:
        """Number of queued requests."""
        return len(self._queue)

    @contextmanager
    def place(self) -> Iterator[None]:
        """Admit a request, from its first message until its last response.

        Raises:
            Overloaded: All places are taken; `retry_after_s` estimates when one is free.
        """
        if self.admitted >= self._size:
            error = Overloaded(f"{self._size} requests are under way, as many as this server takes; try again later")
            error.retry_after_s = min(60.0, max(1.0, self.mean_s))
            raise error
        self.admitted += 1
        try:
            yield
        finally:
            self.admitted -= 1

    @asynccontextmanager
    async def turn(self, on_position: Callable[[int], None]) -> AsyncIterator[None]:
        """Wait for a turn, and hold it while the context is active.

        Args:
            on_position: Called with the position in the queue, from 1, whenever it changes, and with 0 when the turn
                starts.
        """
        loop = asyncio.get_running_loop()
        if self._free and not self._queue:
            self._free -= 1
        else:
            entry = (loop.create_future(), on_position)
            self._queue.append(entry)
            on_position(len(self._queue))
            try:
                await entry[0]
            except asyncio.CancelledError:
                if entry[0].done() and not entry[0].cancelled():
                    self._pass_on()  # the turn was granted before the cancellation arrived
                elif entry in self._queue:
                    self._queue.remove(entry)
                    self._tell()
                raise
        on_position(0)
        started = loop.time()
        try:
            yield
        finally:
            self.mean_s += 0.2 * (loop.time() - started - self.mean_s)
            self._pass_on()

    def _pass_on(self) -> None:
        while self._queue:
            future, _ = self._queue.popleft()
            if not future.done():
                future.set_result(None)
                self._tell()
                return
        self._free += 1

    def _tell(self) -> None:
        for position, (_, on_position) in enumerate(self._queue, 1):
            on_position(position)
