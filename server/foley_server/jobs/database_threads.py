"""Runs calls of the database in threads of their own, with a deadline."""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from foley.errors import DatabaseUnavailable
from foley_server.jobs.database import CONNECTIONS, RETRY_AFTER_S, TIMEOUT_S

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

DEADLINE_S = 3 * TIMEOUT_S  # a call can wait for a thread, a connection and a lock

log = logging.getLogger(__name__)


class DatabaseThreads:
    """Runs methods of the store. A slow disk or network delays only calls that need the database.

    Args:
        on_error: Called after every failed call.

    Attributes:
        executor: The threads.
    """

    def __init__(self, on_error: Callable[[], object] = lambda: None) -> None:
        self.executor = ThreadPoolExecutor(CONNECTIONS + 1, "database")  # one for notifications
        self._on_error = on_error

    async def run(
        self, function: Callable[Parameters, Result], *args: Parameters.args, **kwargs: Parameters.kwargs
    ) -> Result:
        """Return the result of `function`.

        Raises:
            DatabaseUnavailable: It failed, or took too long.
        """
        job = asyncio.get_running_loop().run_in_executor(self.executor, lambda: function(*args, **kwargs))
        job.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # or asyncio logs a late one
        await asyncio.wait([job], timeout=DEADLINE_S)  # `wait_for` can swallow a cancellation before Python 3.12
        if not job.done():
            self._on_error()
            raise _unavailable()
        try:
            return job.result()
        except DatabaseUnavailable as error:
            self._on_error()
            log.error("database: %s", str(error.__cause__).strip().partition("\n")[0])
            raise

    async def insist(
        self, function: Callable[Parameters, Result], *args: Parameters.args, **kwargs: Parameters.kwargs
    ) -> Result:
        """Return the result of `function`, which stores an outcome; try again while the database is unavailable."""
        while True:
            try:
                return await self.run(function, *args, **kwargs)
            except DatabaseUnavailable:
                await asyncio.sleep(RETRY_AFTER_S)

    def close(self) -> None:
        """Do not wait for calls in progress."""
        self.executor.shutdown(wait=False, cancel_futures=True)


def _unavailable() -> DatabaseUnavailable:
    error = DatabaseUnavailable("the database does not respond; try again later")
    error.retry_after_s = RETRY_AFTER_S
    return error
