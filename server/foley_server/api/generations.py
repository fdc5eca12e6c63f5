"""Long-running generations: accepted once, done once, whatever happens to this process in between."""

import asyncio
import logging
import sqlite3
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from google.rpc import status_pb2

from foley.errors import (
    AlreadyExists,
    Cancelled,
    FoleyError,
    MediaUnavailable,
    NotFinished,
    NotFound,
    Overloaded,
    ServerFailure,
    ServerUnavailable,
)
from foley_pipeline.api import foley_pb2 as pb
from foley_pipeline.api.messages import generation_message, job_of, takes_of
from foley_pipeline.api.status import from_status, to_status
from foley_pipeline.job import Sound
from foley_server.api import logs
from foley_server.api.engine import Engine
from foley_server.api.media_store import MediaStore
from foley_server.api.progress import Progress
from foley_server.api.store import Row, Store
from foley_server.api.tracing import call_span
from foley_server.api.upload import Folder, Uploads

log = logging.getLogger(__name__)

ATTEMPTS = 5  # beginnings of one that takes the server or its Triton down with it each time
SWEEP_S = 60.0
PAUSE_S = 0.5
STORE_RETRY_S = 2.0  # between attempts to write an outcome to a store that fails

Result = TypeVar("Result")


@dataclass
class Generations:
    """Belongs to one event loop. `run` does the work."""

    store: Store
    media: MediaStore
    engine: Engine
    uploads: Uploads
    workers: int
    max_stored: int
    keep_s: float
    _live: dict[str, tuple[Progress, "asyncio.Task[None] | None"]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._news = asyncio.Event()
        self._arriving: set[str] = set()

    async def known(self, owner: str, request_id: str, digest: str) -> Row | None:
        """The generation that `owner` has given `request_id`. Raises AlreadyExists where that was another request."""
        row = await _off(self.store.find_request, owner, request_id)
        if row and row.digest.split(":")[0] != digest:
            error = AlreadyExists(f"the request id {request_id} was given to another request; choose a new one")
            error.field = "options.request_id"
            raise error
        return row

    async def add(
        self, owner: str, request_id: str, digest: str, options: pb.GenerateOptions, files: list[Path]
    ) -> Row:
        """Accept a generation whose files are complete; it is on the disk when this returns.

        Raises:
            Overloaded: as many wait as may.
        """
        if await _off(self.store.count, "queued") >= self.max_stored:
            error = Overloaded(f"{self.max_stored} generations are waiting, as many as this server keeps; try later")
            error.retry_after_s = 60.0
            raise error
        id = uuid.uuid4().hex
        self._arriving.add(id)
        try:
            await _off(self.store.reserve, id)
            for file in files:
                await _off(self.media.put, id, file.name, file)
            row = await _off(self.store.add, id, owner, request_id, digest, options.SerializeToString())
            if row.id != id:  # another call with this request id was accepted during the upload
                await self._remove_media(id)
        finally:
            self._arriving.discard(id)  # what is still reserved from here on is removed by the next sweep
        self._news.set()
        return row

    async def find(self, owner: str, name: str) -> Row:
        """The generation `operations/ID` of `owner`. Raises NotFound, for somebody else's too."""
        collection, _, id = name.partition("/")
        row = await _off(self.store.find, owner, id) if collection == "operations" else None
        if row is None:
            raise _not_found(name)
        return row

    async def cancel(self, row: Row) -> None:
        """Stop it, if it has not ended."""
        if await _off(self.store.end, row.id, "cancelled"):
            progress, task = self._live.pop(row.id, (None, None))
            if task:
                task.cancel()
            if progress:
                progress.error = Cancelled("the generation was cancelled")
                progress.changed()
            await self._remove_media(row.id)

    async def delete(self, row: Row) -> None:
        """Forget it. Raises NotFinished where it has not ended."""
        if not row.ended:
            raise NotFinished("it is still being made; cancel it first")
        await _off(self.store.remove, row.id)
        await self._remove_media(row.id)

    async def progress(self, row: Row) -> Progress:
        """The progress of a generation, whether it waits, runs or has ended.

        Raises:
            NotFound: it was deleted in the meantime.
        """
        if row.ended:
            return await self._ended(row)
        # A worker may claim or end the row during any await. With the entry in place before the first one, a worker
        # that claims the row later finds it; the row is read again for one that has ended it before.
        entry = self._live.setdefault(row.id, (Progress(row.id), None))
        progress = entry[0]
        now = await _off(self.store.by_id, row.id)
        if now is None or now.ended:
            if self._live.get(row.id) is entry and entry[1] is None:
                del self._live[row.id]
            if now is None:
                raise _not_found(f"operations/{row.id}")
            return await self._ended(now)
        position = 1 + await _off(self.store.in_front_of, row.number)
        if progress.position is None:  # no worker has set it during the await
            progress.at(position)
        return progress

    def live(self, row: Row) -> Progress | None:
        """How far it is, where it is under way."""
        return self._live.get(row.id, (None, None))[0]

    def error(self, row: Row) -> FoleyError | None:
        """Why it came to nothing."""
        if row.state == "cancelled":
            return Cancelled("the generation was cancelled")
        return from_status(status_pb2.Status.FromString(row.result or b"")) if row.state == "failed" else None

    async def run(self) -> None:
        """Work until cancelled: `workers` generations at once take their turns among the other requests."""
        tasks = [asyncio.create_task(self._work()) for _ in range(self.workers)]
        tasks.append(asyncio.create_task(self._clean()))
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            for task in tasks:  # once: a second time would cut off what a worker does about the first
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def settle(self, grace_s: float) -> None:
        """Wait for those under way, and no longer than this."""
        if tasks := [task for _, task in self._live.values() if task]:
            await asyncio.wait(tasks, timeout=grace_s)

    async def _work(self) -> None:
        while True:
            # Cleared in every round, also in those that claim nothing: a set event would make the wait below return
            # at once, and this loop would never yield to the others.
            self._news.clear()
            try:
                taking = self.engine.supervisor.ready and not self.engine.draining
                if taking and (row := await _off(self.store.claim)):
                    await self._do(row)
                else:
                    await self._pause()
            except Exception:  # a full disk, say: what is accepted waits until there is room
                log.exception("the store does not work")
                await asyncio.sleep(SWEEP_S)

    async def _pause(self) -> None:
        """Wait for news, `PAUSE_S` at most; `asyncio.wait_for` can swallow a cancellation before Python 3.12."""
        news = asyncio.ensure_future(self._news.wait())
        try:
            await asyncio.wait([news], timeout=PAUSE_S)
        finally:
            news.cancel()

    async def _do(self, row: Row) -> None:
        logs.request_id.set(row.id)
        progress, _ = self._live.get(row.id, (Progress(row.id), None))
        task = asyncio.create_task(self._generate(row, progress))
        self._live[row.id] = (progress, task)
        for other, queued in list(self._live.items()):
            if queued[1] is None and (found := await _off(self.store.by_id, other)):
                queued[0].at(1 + await _off(self.store.in_front_of, found.number))
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:  # the server ends: this begins again when it is back
            task.cancel()
            await asyncio.wait([task])
            await _off(self.store.put_back, row.id, False)  # a store that fails now does so at the next start
            raise
        finally:
            if progress.ended:
                self._live.pop(row.id, None)
            elif row.id in self._live:  # queued again: those who watch it go on watching
                self._live[row.id] = (progress, None)

    async def _generate(self, row: Row, progress: Progress) -> None:
        try:
            if (now := await _off(self.store.by_id, row.id)) is None or now.ended:
                progress.error = self.error(now or row)  # taken back in the moment in which it was begun
                return
            if row.attempts > ATTEMPTS:
                raise ServerFailure(f"the server broke down {ATTEMPTS} times over this; tell its operator {row.id}")
            options = pb.GenerateOptions.FromString(row.options)
            with self.uploads.folder() as folder:
                job = job_of(options, folder.video, folder.recording)
                for file in announced(options, folder).values():
                    await _off(self.media.fetch, row.id, file.name, file)
                with call_span("generation", row.id, {}):
                    sound = await self.engine.generate(progress, job)
            progress.expires_s = await self._keep(row, sound)
            progress.sound = sound
            progress.changed()
        except ServerUnavailable as error:
            log.warning("begins again: %s", error)
            await asyncio.sleep(error.retry_after_s or PAUSE_S)  # it may not be known yet that Triton is gone
            await _persisted(self.store.put_back, row.id, not isinstance(error, MediaUnavailable))
        except FoleyError as error:
            await self._fail(row, progress, error)
        except Exception:
            log.exception("a generation failed")
            await self._fail(row, progress, ServerFailure(f"the server made a mistake; tell its operator {row.id}"))

    async def _keep(self, row: Row, sound: Sound) -> float:
        """Keep what came of it until the time that is returned; it has succeeded when all of that is there."""
        await _off(self.media.put, row.id, "envelope", sound.envelope.astype("<f4").tobytes())
        for i, take in enumerate(sound.takes):
            await _off(self.media.put, row.id, f"take-{i}", np.asarray(take.waveform, "<f4").tobytes())
        expires_s = time.time() + self.keep_s
        result = generation_message(row.id, sound.takes)
        result.expire_time.FromNanoseconds(round(expires_s * 1e9))
        if not await _persisted(self.store.end, row.id, "succeeded", result.SerializeToString()):
            await self._remove_media(row.id)
            raise Cancelled("the generation was cancelled")
        return expires_s

    async def _fail(self, row: Row, progress: Progress, error: FoleyError) -> None:
        await _persisted(self.store.end, row.id, "failed", to_status(error, row.id).SerializeToString())
        progress.error = error
        progress.changed()

    async def _ended(self, row: Row) -> Progress:
        """The progress of a generation that has ended, its result loaded."""
        progress = Progress(row.id)
        if row.state != "succeeded":
            progress.error = self.error(row)
            return progress
        generation = pb.Generation.FromString(row.result or b"")
        sounds = {i: await _off(self.media.get, row.id, f"take-{i}") for i in range(len(generation.takes))}
        envelope = np.frombuffer(await _off(self.media.get, row.id, "envelope"), "<f4").astype(np.float32)
        progress.envelope, progress.sound = envelope, Sound(envelope, takes_of(generation, sounds))
        progress.expires_s = generation.expire_time.ToNanoseconds() / 1e9
        return progress

    async def _clean(self) -> None:
        """Remove expired generations, and the media that no generation refers to."""
        while True:
            try:
                for id in await _off(self.store.expired, time.time() - self.keep_s):
                    await _off(self.store.remove, id)
                for id in await self._unreferenced():
                    await self._remove_media(id)
            except Exception:
                log.exception("expired generations cannot be removed")
            await asyncio.sleep(SWEEP_S)

    async def _unreferenced(self) -> set[str]:
        """Ids of this store whose media are to be removed: reserved, and of no upload that is under way.

        An upload that is accepted between the first read and the test of `_arriving` is not reserved any more at the
        second read.
        """
        idle = await _off(self.store.reserved) - self._arriving
        return idle & await _off(self.store.reserved)

    async def _remove_media(self, id: str) -> None:
        await _off(self.media.remove, id)
        await _off(self.store.release, id)


def announced(options: pb.GenerateOptions, folder: Folder) -> dict[pb.FileKind, Path]:
    """The files that come with `options`, in their order."""
    files: dict[pb.FileKind, Path] = {}
    if options.WhichOneof("source") == "video":
        files[pb.FILE_KIND_VIDEO] = folder.video
    if options.prompt.WhichOneof("timbre") == "audio":
        files[pb.FILE_KIND_AUDIO_PROMPT] = folder.recording
    return files


async def _off(function: Callable[..., Result], *arguments: Any) -> Result:
    """Call what may wait for a disk or a network in a thread of its own."""
    return await asyncio.to_thread(function, *arguments)


async def _persisted(function: Callable[..., Result], *arguments: Any) -> Result:
    """Write an outcome to the store, again and again while the disk is full or fails.

    Raising instead would leave the row `running`, where nothing claims it.
    """
    while True:
        try:
            return await _off(function, *arguments)
        except sqlite3.Error as error:
            log.error("the store cannot be written: %s; trying again", error)
            await asyncio.sleep(STORE_RETRY_S)


def _not_found(name: str) -> NotFound:
    error = NotFound(f"there is no operation {name[:100]!r}; it may have been kept no longer")
    error.field = "name"
    return error
