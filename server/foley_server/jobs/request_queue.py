"""Admission control: a bounded FIFO queue. Requests beyond its capacity are rejected at once."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

from foley.errors import Overloaded


class RequestQueue:
    """Runs up to `running` requests concurrently and queues up to `waiting` more, first in, first out.

    Not thread-safe: use it from one event loop.

    Attributes:
        admitted: Number of admitted requests.
        mean_duration_s: Exponential moving average of the time that a slot is held, with weight 0.2 for the latest.
    """

    def __init__(self, running: int, waiting: int) -> None:
        self._capacity = running + waiting
        self._free = running
        self._queue: deque[tuple[asyncio.Future[None], Callable[[int], None]]] = deque()
        self.admitted = 0
        self.mean_duration_s = 10.0  # initial estimate

    @property
    def waiting(self) -> int:
        """Number of queued requests."""
        return len(self._queue)

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Admit a request, from its first message until its last response.

        Raises:
            Overloaded: The server is at its capacity; `retry_after_s` estimates when that changes.
        """
        if self.admitted >= self._capacity:
            error = Overloaded(f"the server is at its request limit of {self._capacity}; try again later")
            error.retry_after_s = min(60.0, max(1.0, self.mean_duration_s))
            raise error
        self.admitted += 1
        try:
            yield
        finally:
            self.admitted -= 1

    @asynccontextmanager
    async def slot(self, on_position: Callable[[int], None]) -> AsyncIterator[None]:
        """Wait for a slot to run, and hold it while the context is active.

        Args:
            on_position: Called with the position in the queue, from 1, whenever it changes, and with 0 when the slot
                is granted.
        """
        loop = asyncio.get_running_loop()
        if self._free and not self._queue:
            self._free -= 1
        else:
            waiter = (loop.create_future(), on_position)
            self._queue.append(waiter)
            on_position(len(self._queue))
            try:
                await waiter[0]
            except asyncio.CancelledError:
                if waiter[0].done() and not waiter[0].cancelled():
                    self._grant_next()  # granted before the cancellation arrived
                elif waiter in self._queue:
                    self._queue.remove(waiter)
                    self._report_positions()
                raise
        on_position(0)
        started = loop.time()
        try:
            yield
        finally:
            self.mean_duration_s += 0.2 * (loop.time() - started - self.mean_duration_s)
            self._grant_next()

    def _grant_next(self) -> None:
        while self._queue:
            future, _ = self._queue.popleft()
            if not future.done():
                future.set_result(None)
                self._report_positions()
                return
        self._free += 1

    def _report_positions(self) -> None:
        for position, (_, on_position) in enumerate(self._queue, 1):
            on_position(position)
