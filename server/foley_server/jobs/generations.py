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
from foley_server.jobs.upload import UploadFolder, Uploads
from foley_server.telemetry import logs
from foley_server.telemetry.tracing import call_span

log = logging.getLogger(__name__)

MAX_ATTEMPTS = 5  # starts of a generation that each time crashes the server or Triton, before it fails
SWEEP_INTERVAL_S = 60.0
POLL_S = 0.5
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
        retention_s: Time for which a generation is kept after it has ended.
    """

    store: Store
    media: MediaStore
    engine: Engine
    uploads: Uploads
    workers: int
    max_stored: int
    retention_s: float
    _live: dict[str, tuple[Progress, "asyncio.Task[None] | None"]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._wakeup = asyncio.Event()
        self._uploading: set[str] = set()

    async def find_request(self, owner: str, request_id: str, digest: str) -> Row | None:
        """Return the generation of `owner` with this `request_id`; None if there is none.

        Raises:
            AlreadyExists: The id belongs to a request with a different digest.
        """
        row = await _in_thread(self.store.find_request, owner, request_id)
        if row and row.digest.split(":")[0] != digest:
            error = AlreadyExists(f"the request id {request_id} was used for a different request; choose a new one")
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
        if await _in_thread(self.store.count, "queued") >= self.max_stored:
            error = Overloaded(f"the queue of {self.max_stored} generations is full; try again later")
            error.retry_after_s = 60.0
            raise error
        id = uuid.uuid4().hex
        self._uploading.add(id)
        try:
            await _in_thread(self.store.reserve, id)
            for file in files:
                await _in_thread(self.media.put, id, file.name, file)
            row = await _in_thread(self.store.add, id, owner, request_id, digest, options.SerializeToString())
            if row.id != id:  # another call with this request id was accepted during the upload
                await self._remove_media(id)
        finally:
            self._uploading.discard(id)  # if the id is still reserved, the next sweep removes its media
        self._wakeup.set()
        return row

    async def find(self, owner: str, name: str) -> Row:
        """Return the generation `operations/ID` of `owner`.

        Raises:
            NotFound: It does not exist, or belongs to another owner.
        """
        collection, _, id = name.partition("/")
        row = await _in_thread(self.store.find, owner, id) if collection == "operations" else None
        if row is None:
            raise _not_found(name)
        return row

    async def cancel(self, row: Row) -> None:
        """Cancel a generation; has no effect if it has ended."""
        if await _in_thread(self.store.end, row.id, "cancelled"):
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
            raise NotFinished("the generation has not ended; cancel it first")
        await _in_thread(self.store.remove, row.id)
        await self._remove_media(row.id)

    async def progress(self, row: Row) -> Progress:
        """Return the progress of a generation that is queued, running or ended.

        Raises:
            NotFound: It was deleted after `row` was read.
        """
        if row.ended:
            return await self._load_result(row)
        # A worker may claim or end the row during any await. The entry is added before the first await, so a worker
        # that claims the row later uses it; the row is read again in case a worker has ended it already.
        entry = self._live.setdefault(row.id, (Progress(row.id), None))
        progress = entry[0]
        current = await _in_thread(self.store.by_id, row.id)
        if current is None or current.ended:
            if self._live.get(row.id) is entry and entry[1] is None:
                del self._live[row.id]
            if current is None:
                raise _not_found(f"operations/{row.id}")
            return await self._load_result(current)
        position = 1 + await _in_thread(self.store.count_ahead, row.number)
        if progress.position is None:  # no worker has set it during the await
            progress.set_position(position)
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
        """Process the queue until cancelled, with `workers` tasks that share the engine's queue with other requests."""
        tasks = [asyncio.create_task(self._worker()) for _ in range(self.workers)]
        tasks.append(asyncio.create_task(self._sweep()))
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            for task in tasks:  # only once: a second cancellation would interrupt a worker's cleanup
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def drain(self, grace_s: float) -> None:
        """Wait up to `grace_s` seconds for running generations."""
        if tasks := [task for _, task in self._live.values() if task]:
            await asyncio.wait(tasks, timeout=grace_s)

    async def _worker(self) -> None:
        while True:
            # Cleared in every iteration, even if nothing is claimed: with the event set, the wait below would return at
            # once, and this loop would never yield to other tasks.
            self._wakeup.clear()
            try:
                can_claim = self.engine.supervisor.ready and not self.engine.draining
                if can_claim and (row := await _in_thread(self.store.claim)):
                    await self._process(row)
                else:
                    await self._wait_for_work()
            except Exception:  # for example a full disk: accepted generations wait until the store works
                log.exception("the database failed")
                await asyncio.sleep(SWEEP_INTERVAL_S)

    async def _wait_for_work(self) -> None:
        """Wait until notified, up to `POLL_S`. Before Python 3.12, `asyncio.wait_for` can swallow a cancellation."""
        wakeup = asyncio.ensure_future(self._wakeup.wait())
        try:
            await asyncio.wait([wakeup], timeout=POLL_S)
        finally:
            wakeup.cancel()

    async def _process(self, row: Row) -> None:
        logs.request_id.set(row.id)
        progress, _ = self._live.get(row.id, (Progress(row.id), None))
        task = asyncio.create_task(self._generate(row, progress))
        self._live[row.id] = (progress, task)
        for other, queued in list(self._live.items()):
            if queued[1] is None and (waiting := await _in_thread(self.store.by_id, other)):
                queued[0].set_position(1 + await _in_thread(self.store.count_ahead, waiting.number))
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:  # the server stops: the generation starts again after the restart
            task.cancel()
            await asyncio.wait([task])
            await _in_thread(self.store.requeue, row.id, False)  # if the store fails, the next start requeues it
            raise
        finally:
            if progress.ended:
                self._live.pop(row.id, None)
            elif row.id in self._live:  # queued again: keep the entry for its watchers
                self._live[row.id] = (progress, None)

    async def _generate(self, row: Row, progress: Progress) -> None:
        try:
            if (current := await _in_thread(self.store.by_id, row.id)) is None or current.ended:
                progress.error = self.error(current or row)  # cancelled or deleted between the claim and this read
                return
            if row.attempts > MAX_ATTEMPTS:
                raise ServerFailure(f"the generation crashed the server {MAX_ATTEMPTS} times; {_report(row)}")
            options = pb.GenerateOptions.FromString(row.options)
            with self.uploads.folder() as folder:
                request = request_from_proto(options, folder.video, folder.recording)
                for file in expected_files(options, folder).values():
                    await _in_thread(self.media.fetch, row.id, file.name, file)
                with call_span("generation", row.id, {}):
                    result = await self.engine.generate(progress, request)
            progress.expires_s = await self._store_result(row, result)
            progress.result = result
            progress.changed()
        except ServerUnavailable as error:
            log.warning("generation requeued: %s", error)
            # the supervisor may not have detected yet that Triton is down
            await asyncio.sleep(error.retry_after_s or POLL_S)
            await _write_with_retry(self.store.requeue, row.id, not isinstance(error, MediaUnavailable))
        except FoleyError as error:
            await self._fail(row, progress, error)
        except Exception:
            log.exception("internal error in a generation")
            await self._fail(row, progress, ServerFailure(f"internal error; {_report(row)}"))

    async def _store_result(self, row: Row, result: GenerationResult) -> float:
        """Store the result, and mark the generation as succeeded once all media are written.

        Returns:
            Unix time at which the result expires.

        Raises:
            Cancelled: The generation was cancelled before it was marked.
        """
        await _in_thread(self.media.put, row.id, "envelope", result.envelope.astype("<f4").tobytes())
        for i, take in enumerate(result.takes):
            await _in_thread(self.media.put, row.id, f"take-{i}", np.asarray(take.waveform, "<f4").tobytes())
        expires_s = time.time() + self.retention_s
        message = result_to_proto(row.id, result)
        message.expire_time.FromNanoseconds(round(expires_s * 1e9))
        if not await _write_with_retry(self.store.end, row.id, "succeeded", message.SerializeToString()):
            await self._remove_media(row.id)
            raise Cancelled("the generation was cancelled")
        return expires_s

    async def _fail(self, row: Row, progress: Progress, error: FoleyError) -> None:
        await _write_with_retry(self.store.end, row.id, "failed", to_status(error, row.id).SerializeToString())
        progress.error = error
        progress.changed()

    async def _load_result(self, row: Row) -> Progress:
        """Load the progress of a generation that has ended, with its result."""
        progress = Progress(row.id)
        if row.state != "succeeded":
            progress.error = self.error(row)
            return progress
        generation = pb.Generation.FromString(row.result or b"")
        sounds = {i: await _in_thread(self.media.get, row.id, f"take-{i}") for i in range(len(generation.takes))}
        envelope = np.frombuffer(await _in_thread(self.media.get, row.id, "envelope"), "<f4").astype(np.float32)
        progress.report(StageProgress(Stage.VIDEO2RMS, 1, 1, envelope=envelope))
        progress.result = result_from_proto(generation, envelope, sounds)
        progress.expires_s = generation.expire_time.ToNanoseconds() / 1e9
        return progress

    async def _sweep(self) -> None:
        """Periodically remove expired generations and unreferenced media."""
        while True:
            try:
                for id in await _in_thread(self.store.expired, time.time() - self.retention_s):
                    await _in_thread(self.store.remove, id)
                for id in await self._unreferenced():
                    await self._remove_media(id)
            except Exception:
                log.exception("expired generations cannot be removed")
            await asyncio.sleep(SWEEP_INTERVAL_S)

    async def _unreferenced(self) -> set[str]:
        """Return the ids whose media can be removed: reserved, and not being uploaded.

        The second read excludes an upload that is accepted between the first read and the check of `_uploading`: it is
        no longer reserved then.
        """
        idle = await _in_thread(self.store.reserved) - self._uploading
        return idle & await _in_thread(self.store.reserved)

    async def _remove_media(self, id: str) -> None:
        await _in_thread(self.media.remove, id)
        await _in_thread(self.store.release, id)


def expected_files(options: pb.GenerateOptions, folder: UploadFolder) -> dict[pb.FileKind, Path]:
    """Return the paths of the files that `options` announces, in upload order."""
    files: dict[pb.FileKind, Path] = {}
    if options.WhichOneof("source") == "video":
        files[pb.FILE_KIND_VIDEO] = folder.video
    if options.prompt.WhichOneof("timbre") == "audio":
        files[pb.FILE_KIND_AUDIO_PROMPT] = folder.recording
    return files


async def _in_thread(function: Callable[..., Result], *arguments: Any) -> Result:
    """Run a function that may block on disk or network I/O in a worker thread."""
    return await asyncio.to_thread(function, *arguments)


async def _write_with_retry(function: Callable[..., Result], *arguments: Any) -> Result:
    """Write an outcome to the store; retry while the store fails, for example on a full disk.

    Raising an error instead would leave the row in the state `running`, in which no worker claims it.
    """
    while True:
        try:
            return await _in_thread(function, *arguments)
        except sqlite3.Error as error:
            log.error("the database cannot be written: %s; retrying", error)
            await asyncio.sleep(STORE_RETRY_S)


def _report(row: Row) -> str:
    return f"report the generation id {row.id} to the server's operator"


def _not_found(name: str) -> NotFound:
    error = NotFound(f"there is no operation {name[:100]!r}; it may have expired")
    error.field = "name"
    return error
