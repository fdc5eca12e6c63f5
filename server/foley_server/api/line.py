"""Admission: how many requests are let in, and whose turn it is. A request beyond that is refused at once."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

from foley.errors import Overloaded


class Line:
    """`running` requests at once, the others in the order in which they came; at most `waiting` of them.

    Belongs to one event loop.
    """

    def __init__(self, running: int, waiting: int) -> None:
        self._size = running + waiting
        self._free = running
        self._queue: deque[tuple[asyncio.Future[None], Callable[[int], None]]] = deque()
        self.admitted = 0
        self.mean_s = 10.0  # of a turn; of the last ones more than of those before

    @property
    def waiting(self) -> int:
        """How many wait for their turn."""
        return len(self._queue)

    @contextmanager
    def place(self) -> Iterator[None]:
        """Be one of those that are let in: from the first message on, until the last has been sent.

        Raises:
            Overloaded: there is no place; says when one may be free.
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
        """Wait for one's turn, and have it; told is how many are in front, whenever that changes, at last 0."""
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
                    self._pass_on()  # it was our turn in the same moment
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
