"""Progress of jobs that calls of this process watch, wherever they run."""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from foley.envelope import Floats
from foley.errors import FoleyError
from foley_server.jobs import events
from foley_server.jobs.changes import changes
from foley_server.jobs.database_threads import DatabaseThreads
from foley_server.jobs.media_store import MediaStore
from foley_server.jobs.progress import ENVELOPE, Progress
from foley_server.jobs.store import Job, Store

log = logging.getLogger(__name__)

INTERVAL_S = 0.1  # minimum time between two reads of the database
ENVELOPE_TIMEOUT_S = 3.0  # the other watchers wait for it
FAILURE_S = 2.0  # after which the database is asked again
POSITIONS_S = 0.5  # interval of queue positions, while a queued job is watched


class Watches:
    """Keeps `Progress` up to date for all watchers, with one query per interval. Use it from one event loop.

    Args:
        store: The jobs.
        media: Storage of envelopes.
        database: Runs the store's methods.
    """

    def __init__(self, store: Store, media: MediaStore, database: DatabaseThreads) -> None:
        self._store, self._media, self._database = store, media, database
        self._watched: dict[str, tuple[Progress, int]] = {}
        self._stale: set[str] = set()
        self._wakeup = asyncio.Event()
        self.on_change: list[asyncio.Event] = []

    @contextmanager
    def watch(self, id: str) -> Iterator[Progress]:
        """Keep the progress of a job up to date while the context is active; all watchers share the object."""
        progress, count = self._watched.get(id, (Progress(id), 0))
        self._watched[id] = (progress, count + 1)
        self.changed(id)
        try:
            yield progress
        finally:
            progress, count = self._watched[id]
            if count == 1:
                del self._watched[id]
            else:
                self._watched[id] = (progress, count - 1)

    def get(self, id: str) -> Progress | None:
        """Return the progress of a job, if it is watched."""
        return self._watched.get(id, (None, 0))[0]

    def changed(self, id: str | None) -> None:
        """Read a job again, or all of them."""
        self._stale.update(self._watched if id is None else {id} & self._watched.keys())
        self._wakeup.set()
        for event in self.on_change:
            event.set()

    async def run(self) -> None:
        """Follow the changes of all processes until cancelled."""
        listening = asyncio.create_task(self._listen())
        try:
            while True:
                await self._refresh()
                await asyncio.sleep(INTERVAL_S)
                if not self._stale:
                    queued = any(progress.position for progress, _ in self._watched.values())
                    await events.wait(self._wakeup, POSITIONS_S if queued else None)
                self._wakeup.clear()
        finally:
            listening.cancel()

    async def _listen(self) -> None:
        async for id in changes(self._store.engine, self._database.executor):
            self.changed(id)

    async def _refresh(self) -> None:
        queued = [id for id, (progress, _) in self._watched.items() if progress.position]
        stale, self._stale = self._stale & self._watched.keys(), set()
        try:
            jobs = await self._database.run(self._store.get, list(stale)) if stale else {}
            queued += [id for id, job in jobs.items() if job.state == "queued"]
            positions = await self._database.run(self._store.positions, queued) if queued else {}
            for id in stale:
                if watched := self._watched.get(id):
                    await self._update(watched[0], jobs.get(id), positions.get(id))
            for id in queued:
                if (watched := self._watched.get(id)) and positions.get(id):
                    watched[0].set_position(positions[id])
        except FoleyError as error:  # the watchers wait until the database is back
            log.warning("watched jobs cannot be read: %s", error)
            self._stale |= stale
            await asyncio.sleep(FAILURE_S)

    async def _update(self, progress: Progress, job: Job | None, position: int | None) -> None:
        if job is None:
            progress.end(None)
            return
        if not progress.local:
            await self._load(progress, job, position)
        if job.ended:
            progress.end(job)

    async def _load(self, progress: Progress, job: Job, position: int | None) -> None:
        if job.starts != progress.starts:
            progress.restart(job.starts)
        if job.state == "queued" and position:
            progress.set_position(position)
        if job.state == "running":
            progress.set_position(0)
        if job.progress:
            wants_envelope = f'"{ENVELOPE}"' in job.progress and progress.envelope is None
            progress.load(job.progress, await self._envelope(job) if wants_envelope else None)

    async def _envelope(self, job: Job) -> Floats | None:
        try:
            reading = self._media.get(job.id, f"{media_folder(job)}{ENVELOPE}")
            content = await asyncio.wait_for(reading, ENVELOPE_TIMEOUT_S)
        except (FoleyError, asyncio.TimeoutError):  # it is read again with the next change
            return None
        return np.frombuffer(content, "<f4").astype(np.float32)


def media_folder(job: Job) -> str:
    """Return the prefix of the names of a job's results.

    Each start writes to a folder of its own, so that a process that has lost its claim damages no result. Generations
    of the first version, which had no such folders, have no starts.
    """
    return f"{job.starts}/" if job.starts else ""
