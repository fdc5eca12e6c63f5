"""Long-running generations, persisted so that each is accepted once and completed once across restarts."""

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
from foley_pipeline.api.messages import request_from_proto, result_from_proto, result_to_proto
from foley_pipeline.api.status import from_status, to_status
from foley_pipeline.progress import Progress as StageProgress
from foley_pipeline.progress import Stage
from foley_pipeline.result import GenerationResult
from foley_server.jobs.engine import Engine
from foley_server.jobs.media_store import MediaStore
from foley_server.jobs.progress import Progress
from foley_server.jobs.store import Row, Store
from foley_server.jobs.upload import Folder, Uploads
from foley_server.telemetry import logs
from foley_server.telemetry.tracing import call_span

log = logging.getLogger(__name__)

ATTEMPTS = 5  # starts of a generation that each time crashes the server or Triton, before it fails
SWEEP_S = 60.0
PAUSE_S = 0.5
STORE_RETRY_S = 2.0  # between attempts to write an outcome to a store that fails

Result = TypeVar("Result")


@dataclass
class Generations:
    """Accepts, runs, stores and expires generations. Not thread-safe: use it from one event loop.

    `run` processes the queue.

    Attributes:
        store: The database of generations.
        media: Storage of uploaded files and results.
        engine: Runs the pipeline.
        uploads: Folders for media while a generation runs.
        workers: Number of generations that run concurrently.
        max_stored: Maximum number of queued generations.
        keep_s: Time for which a generation is kept after it has ended.
    """

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
        """Return the generation of `owner` with this `request_id`; None if there is none.

        Raises:
            AlreadyExists: The id belongs to a request with a different digest.
        """
        row = await _off(self.store.find_request, owner, request_id)
        if row and row.digest.split(":")[0] != digest:
            error = AlreadyExists(f"the request id {request_id} was given to another request; choose a new one")
            error.field = "options.request_id"
            raise error
        return row

    async def add(
        self, owner: str, request_id: str, digest: str, options: pb.GenerateOptions, files: list[Path]
    ) -> Row:
        """Accept a generation whose files are complete. It is persisted when this returns.

        Args:
            owner: Name of the caller's token.
            request_id: Idempotency key of the caller, a UUID.
            digest: Digest of the options and of the files.
            options: What to generate.
            files: Uploaded files.

        Returns:
            The new row, or the existing one if `owner` has used `request_id` before.

        Raises:
            Overloaded: `max_stored` generations are queued.
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
            self._arriving.discard(id)  # if the id is still reserved, the next sweep removes its media
        self._news.set()
        return row

    async def find(self, owner: str, name: str) -> Row:
        """Return the generation `operations/ID` of `owner`.

        Raises:
            NotFound: It does not exist, or belongs to another owner.
        """
        collection, _, id = name.partition("/")
        row = await _off(self.store.find, owner, id) if collection == "operations" else None
        if row is None:
            raise _not_found(name)
        return row

    async def cancel(self, row: Row) -> None:
        """Cancel a generation; has no effect if it has ended."""
        if await _off(self.store.end, row.id, "cancelled"):
            progress, task = self._live.pop(row.id, (None, None))
            if task:
                task.cancel()
            if progress:
                progress.error = Cancelled("the generation was cancelled")
                progress.changed()
            await self._remove_media(row.id)

    async def delete(self, row: Row) -> None:
        """Delete a generation and its media.

        Raises:
            NotFinished: It has not ended.
        """
        if not row.ended:
            raise NotFinished("it is still being made; cancel it first")
        await _off(self.store.remove, row.id)
        await self._remove_media(row.id)

    async def progress(self, row: Row) -> Progress:
        """Return the progress of a generation that is queued, running or ended.

        Raises:
            NotFound: It was deleted after `row` was read.
        """
        if row.ended:
            return await self._ended(row)
        # A worker may claim or end the row during any await. The entry is added before the first await, so a worker
        # that claims the row later uses it; the row is read again in case a worker has ended it already.
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
        """Return the progress of a generation that is running or watched, else None."""
        return self._live.get(row.id, (None, None))[0]

    def error(self, row: Row) -> FoleyError | None:
        """Return the error of a failed or cancelled generation, else None."""
        if row.state == "cancelled":
            return Cancelled("the generation was cancelled")
        return from_status(status_pb2.Status.FromString(row.result or b"")) if row.state == "failed" else None

    async def run(self) -> None:
        """Process the queue until cancelled, with `workers` tasks that share the engine's line with other requests."""
        tasks = [asyncio.create_task(self._work()) for _ in range(self.workers)]
        tasks.append(asyncio.create_task(self._clean()))
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            for task in tasks:  # only once: a second cancellation would interrupt a worker's cleanup
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def settle(self, grace_s: float) -> None:
        """Wait up to `grace_s` seconds for running generations."""
        if tasks := [task for _, task in self._live.values() if task]:
            await asyncio.wait(tasks, timeout=grace_s)

    async def _work(self) -> None:
        while True:
            # Cleared in every iteration, even if nothing is claimed: with the event set, the wait below would return at
            # once, and this loop would never yield to other tasks.
            self._news.clear()
            try:
                taking = self.engine.supervisor.ready and not self.engine.draining
                if taking and (row := await _off(self.store.claim)):
                    await self._do(row)
                else:
                    await self._pause()
            except Exception:  # for example a full disk: accepted generations wait until the store works
                log.exception("the store does not work")
                await asyncio.sleep(SWEEP_S)

    async def _pause(self) -> None:
        """Wait for news, up to `PAUSE_S`. Before Python 3.12, `asyncio.wait_for` can swallow a cancellation."""
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
        except asyncio.CancelledError:  # the server stops: the generation starts again after the restart
            task.cancel()
            await asyncio.wait([task])
            await _off(self.store.put_back, row.id, False)  # if the store fails, the next start requeues it
            raise
        finally:
            if progress.ended:
                self._live.pop(row.id, None)
            elif row.id in self._live:  # queued again: keep the entry for its watchers
                self._live[row.id] = (progress, None)

    async def _generate(self, row: Row, progress: Progress) -> None:
        try:
            if (now := await _off(self.store.by_id, row.id)) is None or now.ended:
                progress.error = self.error(now or row)  # cancelled or deleted between the claim and this read
                return
            if row.attempts > ATTEMPTS:
                raise ServerFailure(f"the server broke down {ATTEMPTS} times over this; tell its operator {row.id}")
            options = pb.GenerateOptions.FromString(row.options)
            with self.uploads.folder() as folder:
                request = request_from_proto(options, folder.video, folder.recording)
                for file in announced(options, folder).values():
                    await _off(self.media.fetch, row.id, file.name, file)
                with call_span("generation", row.id, {}):
                    result = await self.engine.generate(progress, request)
            progress.expires_s = await self._keep(row, result)
            progress.result = result
            progress.changed()
        except ServerUnavailable as error:
            log.warning("begins again: %s", error)
            # the supervisor may not have detected yet that Triton is down
            await asyncio.sleep(error.retry_after_s or PAUSE_S)
            await _persisted(self.store.put_back, row.id, not isinstance(error, MediaUnavailable))
        except FoleyError as error:
            await self._fail(row, progress, error)
        except Exception:
            log.exception("a generation failed")
            await self._fail(row, progress, ServerFailure(f"the server made a mistake; tell its operator {row.id}"))

    async def _keep(self, row: Row, result: GenerationResult) -> float:
        """Store the result, and mark the generation as succeeded once all media are written.

        Returns:
            Unix time at which the result expires.

        Raises:
            Cancelled: The generation was cancelled before it was marked.
        """
        await _off(self.media.put, row.id, "envelope", result.envelope.astype("<f4").tobytes())
        for i, take in enumerate(result.takes):
            await _off(self.media.put, row.id, f"take-{i}", np.asarray(take.waveform, "<f4").tobytes())
        expires_s = time.time() + self.keep_s
        message = result_to_proto(row.id, result)
        message.expire_time.FromNanoseconds(round(expires_s * 1e9))
        if not await _persisted(self.store.end, row.id, "succeeded", message.SerializeToString()):
            await self._remove_media(row.id)
            raise Cancelled("the generation was cancelled")
        return expires_s

    async def _fail(self, row: Row, progress: Progress, error: FoleyError) -> None:
        await _persisted(self.store.end, row.id, "failed", to_status(error, row.id).SerializeToString())
        progress.error = error
        progress.changed()

    async def _ended(self, row: Row) -> Progress:
        """Load the progress of a generation that has ended, with its result."""
        progress = Progress(row.id)
        if row.state != "succeeded":
            progress.error = self.error(row)
            return progress
        generation = pb.Generation.FromString(row.result or b"")
        sounds = {i: await _off(self.media.get, row.id, f"take-{i}") for i in range(len(generation.takes))}
        envelope = np.frombuffer(await _off(self.media.get, row.id, "envelope"), "<f4").astype(np.float32)
        progress.report(StageProgress(Stage.VIDEO2RMS, 1, 1, envelope=envelope))
        progress.result = result_from_proto(generation, envelope, sounds)
        progress.expires_s = generation.expire_time.ToNanoseconds() / 1e9
        return progress

    async def _clean(self) -> None:
        """Periodically remove expired generations and unreferenced media."""
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
        """Return the ids whose media can be removed: reserved, and not being uploaded.

        The second read excludes an upload that is accepted between the first read and the check of `_arriving`: it is
        no longer reserved then.
        """
        idle = await _off(self.store.reserved) - self._arriving
        return idle & await _off(self.store.reserved)

    async def _remove_media(self, id: str) -> None:
        await _off(self.media.remove, id)
        await _off(self.store.release, id)


def announced(options: pb.GenerateOptions, folder: Folder) -> dict[pb.FileKind, Path]:
    """Return the paths of the files that `options` announces, in upload order."""
    files: dict[pb.FileKind, Path] = {}
    if options.WhichOneof("source") == "video":
        files[pb.FILE_KIND_VIDEO] = folder.video
    if options.prompt.WhichOneof("timbre") == "audio":
        files[pb.FILE_KIND_AUDIO_PROMPT] = folder.recording
    return files


async def _off(function: Callable[..., Result], *arguments: Any) -> Result:
    """Run a function that may block on disk or network I/O in a worker thread."""
    return await asyncio.to_thread(function, *arguments)


async def _persisted(function: Callable[..., Result], *arguments: Any) -> Result:
    """Write an outcome to the store; retry while the store fails, for example on a full disk.

    Raising an error instead would leave the row in the state `running`, in which no worker claims it.
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
