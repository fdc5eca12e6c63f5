"""The leases of this process, which a heartbeat extends."""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from foley.errors import FoleyError
from foley_server.jobs.database_threads import DatabaseThreads
from foley_server.jobs.store import Job, Store

log = logging.getLogger(__name__)

HEARTBEAT_S = 5.0


class Leases:
    """Extends the leases on the jobs that this process receives, runs or waits for, and on no others.

    A job whose claim, acceptance or removal failed half-way is not among them: its lease lapses. Not thread-safe: use
    it from one event loop.

    Args:
        holder: Name of this process.
        store: The jobs.
        database: Runs the store's methods.
    """

    def __init__(self, holder: str, store: Store, database: DatabaseThreads) -> None:
        self.holder = holder
        self._store, self._database = store, database
        self._held: dict[str, int] = {}  # number of holds by id
        self._runs: dict[tuple[str, int], asyncio.Event] = {}

    @contextmanager
    def hold(self, id: str) -> Iterator[None]:
        """Extend the lease on an upload or a call while the context is active."""
        self._held[id] = self._held.get(id, 0) + 1
        try:
            yield
        finally:
            self._held[id] -= 1
            if not self._held[id]:
                del self._held[id]

    @contextmanager
    def run_of(self, job: Job) -> Iterator[asyncio.Event]:
        """Extend the lease on a claimed job while the context is active.

        Yields:
            An event that is set when the claim is lost: the job was cancelled, or another process took over.
        """
        lost = self._runs[job.id, job.starts] = asyncio.Event()
        try:
            with self.hold(job.id):
                yield lost
        finally:
            del self._runs[job.id, job.starts]

    def end_runs_of(self, id: str) -> None:
        """End the runs of a cancelled job in this process at once; other processes learn of it from the store."""
        for (job, _), lost in self._runs.items():
            if job == id:
                lost.set()

    async def run(self) -> None:
        """Extend the leases until cancelled."""
        while True:
            claimed_before = dict(self._runs)
            try:
                held = await self._database.run(self._store.heartbeat, self.holder, list(self._held))
            except FoleyError as error:
                log.warning("the leases cannot be extended: %s", error)
            else:
                for claim, lost in claimed_before.items():
                    if claim not in held:
                        lost.set()
            await asyncio.sleep(HEARTBEAT_S)
