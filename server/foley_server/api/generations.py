"""Long-running generations: accepted once, done once, whatever happens to this process in between."""

import asyncio
import logging
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
            for file in files:
                await _off(self.media.put, id, file.name, file)
            row = await _off(self.store.add, id, owner, request_id, digest, options.SerializeToString())
        finally:
            self._arriving.discard(id)
        if row.id != id:  # somebody has given the same request id at the same time
            await _off(self.media.remove, id)
        self._news.set()
        return row

    async def find(self, owner: str, name: str) -> Row:
        """The generation `operations/ID` of `owner`. Raises NotFound, for somebody else's too."""
        collection, _, id = name.partition("/")
        row = await _off(self.store.find, owner, id) if collection == "operations" else None
        if row is None:
            error = NotFound(f"there is no operation {name[:100]!r}; it may have been kept no longer")
            error.field = "name"
            raise error
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
            await _off(self.media.remove, row.id)

    async def delete(self, row: Row) -> None:
        """Forget it. Raises NotFinished where it has not ended."""
        if not row.ended:
            raise NotFinished("it is still being made; cancel it first")
        await _off(self.store.remove, row.id)
        await _off(self.media.remove, row.id)

    async def progress(self, row: Row) -> Progress:
        """What there is to follow of it."""
        if row.id in self._live:
            return self._live[row.id][0]
        progress = Progress(row.id)
        if not row.ended:
            progress.position = 1 + await _off(self.store.in_front_of, row.number)
            self._live[row.id] = (progress, None)
        elif row.state == "succeeded":
            await self._load(progress, row)
        else:
            progress.error = self.error(row)
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
            try:
                row = None
                if self.engine.supervisor.ready and not self.engine.draining:
                    self._news.clear()
                    row = await _off(self.store.claim)
                if row:
                    await self._do(row)
                else:
                    await asyncio.wait_for(self._news.wait(), PAUSE_S)
            except asyncio.TimeoutError:
                continue
            except Exception:  # a full disk, say: what is accepted waits until there is room
                log.exception("the store does not work")
                await asyncio.sleep(SWEEP_S)

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
            await _off(self.store.put_back, row.id, False)
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
            await _off(self.store.put_back, row.id, not isinstance(error, MediaUnavailable))
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
        if not await _off(self.store.end, row.id, "succeeded", result.SerializeToString()):
            await _off(self.media.remove, row.id)
            raise Cancelled("the generation was cancelled")
        return expires_s

    async def _fail(self, row: Row, progress: Progress, error: FoleyError) -> None:
        await _off(self.store.end, row.id, "failed", to_status(error, row.id).SerializeToString())
        progress.error = error
        progress.changed()

    async def _load(self, progress: Progress, row: Row) -> None:
        generation = pb.Generation.FromString(row.result or b"")
        sounds = {i: await _off(self.media.get, row.id, f"take-{i}") for i in range(len(generation.takes))}
        envelope = np.frombuffer(await _off(self.media.get, row.id, "envelope"), "<f4").astype(np.float32)
        progress.envelope, progress.sound = envelope, Sound(envelope, takes_of(generation, sounds))
        progress.expires_s = generation.expire_time.ToNanoseconds() / 1e9

    async def _clean(self) -> None:
        """Forget those whose time is over; at the start, also media that a process that was killed left behind."""
        left = self._left_behind
        while True:
            try:
                for id in await _off(left) + await _off(self.store.expired, time.time() - self.keep_s):
                    await _off(self.store.remove, id)
                    await _off(self.media.remove, id)
                left = list
            except Exception:
                log.exception("what is over cannot be removed")
            await asyncio.sleep(SWEEP_S)

    def _left_behind(self) -> list[str]:
        """Media that were put there and not accepted, nor being so now."""
        known = self.store.ids()
        return [id for id in self.media.ids() if id not in known and id not in self._arriving]


def announced(options: pb.GenerateOptions, folder: Folder) -> dict[pb.FileKind, Path]:
    """The files that come with `options`, in their order."""
    files: dict[pb.FileKind, Path] = {}
    if options.WhichOneof("source") == "video":
        files[pb.FILE_KIND_VIDEO] = folder.video
    if options.prompt.WhichOneof("like") == "audio":
        files[pb.FILE_KIND_AUDIO_PROMPT] = folder.recording
    return files


async def _off(function: Callable[..., Result], *arguments: Any) -> Result:
    """Call what may wait for a disk or a network in a thread of its own."""
    return await asyncio.to_thread(function, *arguments)
