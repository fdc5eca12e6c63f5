"""Accepts jobs and answers questions about them. Each is accepted once and completed once, across all processes."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, nullcontext, suppress
from dataclasses import dataclass

from google.protobuf.message import Message
from google.rpc import status_pb2

from foley.errors import AlreadyExists, Cancelled, FoleyError, NotFinished, NotFound, Overloaded, ServerUnavailable
from foley.manifest import SamplingDefaults
from foley_pipeline.api import foley_pb2 as pb
from foley_pipeline.api.messages import field
from foley_pipeline.api.status import from_status
from foley_server.jobs.database_threads import DatabaseThreads
from foley_server.jobs.leases import Leases
from foley_server.jobs.media_store import MediaStore
from foley_server.jobs.progress import Progress, stage_to_proto
from foley_server.jobs.store import Job, Kind, Quota, Store, new_id
from foley_server.jobs.upload import UploadFolder, Uploads
from foley_server.jobs.watches import Watches, media_folder
from foley_server.jobs.work import Work, prepare
from foley_server.launcher.pool import TritonPool
from foley_server.telemetry import logs
from foley_server.telemetry.tracing import trace_headers

log = logging.getLogger(__name__)

SWEEP_INTERVAL_S = 5.0
MAX_UPLOADS = 512  # of a process; each takes a message of memory, a file and a row
RETRY_AFTER_S = 2.0


@dataclass(frozen=True)
class Upload:
    """A job whose files are being received.

    Attributes:
        id: Id of the job.
        request: Its serialised request.
        quota: Limits of the owner.
        folder: Folder for the files.
        work: Its work, with the paths of the files.
    """

    id: str
    request: bytes
    quota: Quota
    folder: UploadFolder
    work: Work


@dataclass
class Jobs:
    """Not thread-safe: use it from one event loop.

    Attributes:
        leases: The leases of this process.
        store: The jobs.
        database: Runs the store's methods.
        media: Files of the jobs.
        watches: Progress of the jobs.
        uploads: Folders for uploads.
        tritons: The Tritons, for the defaults of their bundle.
        keep_s: Time for which ended jobs are kept.
        max_calls: Maximum number of jobs, queued or running, for which callers of this process wait.
        max_steps: Maximum number of denoising steps.
        draining: Whether new jobs are rejected.
    """

    leases: Leases
    store: Store
    database: DatabaseThreads
    media: MediaStore
    watches: Watches
    uploads: Uploads
    tritons: TritonPool
    keep_s: float
    max_calls: int
    max_steps: int
    draining: bool = False

    def __post_init__(self) -> None:
        self._uploading = 0
        self._called: set[str] = set()  # until their jobs have ended
        self._calls: set[asyncio.Task[object]] = set()
        self._watchers: set[asyncio.Task[object]] = set()
        self._aborting = False

    @property
    def calls(self) -> int:
        """Number of jobs for which callers of this process wait."""
        return len(self._called)

    # -- creation

    @asynccontextmanager
    async def receive(
        self, owner: str, kind: Kind, request: Message, path: str, quota: Quota, *, call: bool
    ) -> AsyncIterator[Upload]:
        """Receive a job; `accept` it within the context. An upload that is not accepted leaves nothing behind.

        Args:
            owner: Name of the caller's token.
            kind: Kind of the job.
            request: The request: GenerateOptions, VideoSource or Prompt.
            path: Path of the request in the caller's message, for errors; "" if it is the message.
            quota: Limits of the owner.
            call: Whether a caller waits for it, in `call`.

        Raises:
            InvalidInput: The request is not valid.
            Overloaded: A limit is reached.
            ServerUnavailable: The server is shutting down; or a caller waits, and Triton is down.
        """
        if self.draining:
            raise _shutting_down()
        if call:
            self.tritons.any()
            self._check_calls()
        with self.uploads.folder() as folder:
            request.DiscardUnknownFields()  # they would be stored
            serialized = request.SerializeToString()
            with field(path) if path else nullcontext():
                work = prepare(kind, serialized, folder)
                work.cost(self._defaults(), self.max_steps)
            self.uploads.check_space()
            await self.database.run(self.store.check_quota, owner, quota)
            id = (call and logs.request_id.get()) or new_id()  # one id for a call and its job
            with self._place_for_upload(), self.leases.hold(id):
                try:
                    await self.database.run(self.store.receive, id, owner, kind, self.leases.holder)
                    yield Upload(id, serialized, quota, folder, work)
                except BaseException:
                    for undo in (self.store.abandon, self.store.discard)[: 1 + call]:  # an accepted generation stays
                        with suppress(FoleyError):  # else the lease lapses
                            await asyncio.shield(self.database.run(undo, id))
                    raise

    async def accept(
        self, upload: Upload, *, request_id: str | None = None, digest: str | None = None, call: bool = False
    ) -> Job:
        """Queue an upload whose files are complete. The job is persisted when this returns.

        Args:
            upload: The upload.
            request_id: Idempotency key of the caller, a UUID.
            digest: Digest of the request and its files.
            call: Whether a caller waits for it, in `call`.

        Returns:
            The new job, or the existing one if the owner has used `request_id` before.

        Raises:
            Overloaded: A limit is reached.
            AlreadyExists: The owner has used `request_id` for a different request.
        """
        if call:
            self._check_calls()
            self._called.add(upload.id)
        try:
            size = 0
            for path in upload.work.files.values():
                size += path.stat().st_size
                await self.media.put(upload.id, path.name, path)
            return await self.database.run(
                self.store.accept,
                upload.id,
                upload.request,
                upload.work.cost(self._defaults(), self.max_steps),
                size,
                upload.quota,
                request_id=request_id,
                digest=digest,
                caller=self.leases.holder if call else None,
                trace=json.dumps(trace_headers()),
            )
        except BaseException:
            self._called.discard(upload.id)
            raise

    async def find_request(self, owner: str, request_id: str, digest: str) -> Job | None:
        """Return the generation of `owner` with this `request_id`; None if there is none.

        Raises:
            AlreadyExists: The id belongs to a request with a different digest.
        """
        job = await self.database.run(self.store.find_request, owner, request_id)
        if job and (job.digest or "").split(":")[0] != digest:
            error = AlreadyExists(f"the request id {request_id} was used for a different request; choose a new one")
            error.field = "options.request_id"
            raise error
        return job

    # -- callers

    @asynccontextmanager
    async def call(self, job: Job) -> AsyncIterator[Progress]:
        """Wait for a job that was accepted with `call`; it is cancelled if the context ends first, and removed.

        Yields:
            Its progress.

        Raises:
            ServerUnavailable: The server stops before the job has ended.
        """
        try:
            with self._tracked(self._calls), self.leases.hold(job.id), self.watches.watch(job.id) as progress:
                ended = asyncio.ensure_future(progress.wait())
                ended.add_done_callback(lambda _: self._called.discard(job.id))  # delivery takes no place
                try:
                    yield progress
                finally:
                    ended.cancel()
        finally:
            with suppress(FoleyError):  # else the lease of the caller lapses
                await asyncio.shield(self.database.run(self.store.discard, job.id))
            self.watches.changed(job.id)

    @contextmanager
    def watch(self, job: Job) -> Iterator[Progress]:
        """Watch a job; a watcher costs no place, and draining does not wait for it.

        Raises:
            ServerUnavailable: The server stops before the job has ended.
        """
        with self._tracked(self._watchers), self.watches.watch(job.id) as progress:
            yield progress

    @contextmanager
    def _tracked(self, tasks: set["asyncio.Task[object]"]) -> Iterator[None]:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            yield
        except asyncio.CancelledError:
            if self._aborting:
                raise _shutting_down() from None
            raise
        finally:
            tasks.discard(task)

    async def find(self, owner: str, name: str) -> Job:
        """Return the generation `operations/ID` of `owner`.

        Raises:
            NotFound: It does not exist, or belongs to another owner.
        """
        collection, _, id = name.partition("/")
        job = await self.database.run(self.store.find, owner, id) if collection == "operations" else None
        if job is None:
            error = NotFound(f"there is no operation {name[:100]!r}; it may have expired")
            error.field = "name"
            raise error
        return job

    async def cancel(self, job: Job) -> None:
        """Cancel a job; has no effect if it has ended."""
        if await self.database.run(self.store.cancel, job.id, self.keep_s):
            self.leases.end_runs_of(job.id)
            self.watches.changed(job.id)
            with suppress(FoleyError):  # else the files go with the job
                await self.media.remove(job.id)

    async def delete(self, job: Job) -> None:
        """Delete a job and its media.

        Raises:
            NotFinished: It has not ended.
        """
        if not job.ended:
            raise NotFinished("the generation has not ended; cancel it first")
        await self.database.run(self.store.discard, job.id)

    # -- results

    def generation(self, job: Job) -> pb.Generation:
        """Return the result of a generation that has succeeded, without its sounds."""
        generation = pb.Generation.FromString(job.result or b"")
        generation.id = job.id
        if job.caller is None and job.ended_s is not None:
            generation.expire_time.FromNanoseconds(round((job.ended_s + self.keep_s) * 1e9))
        return generation

    async def positions(self, jobs: Sequence[Job]) -> dict[str, int]:
        """Return the positions in the queue, from 1, of those of these jobs that are queued."""
        ids = [job.id for job in jobs if job.state == "queued"]
        return await self.database.run(self.store.positions, ids) if ids else {}

    def stage(self, job: Job) -> pb.StageProgress | None:
        """Return the latest progress of a job that runs in any process; None before the first."""
        progress = self.watches.get(job.id) or Progress(job.id)
        if progress.stage is None and job.progress:
            progress.load(job.progress, None)
        return stage_to_proto(progress.stage) if progress.stage else None

    async def sound(self, job: Job, variation: int) -> AsyncIterator[bytes]:
        """Yield a sound of a generation in chunks: little-endian float32 at 16 kHz."""
        async for chunk in self.media.read(job.id, f"{media_folder(job)}take-{variation}"):
            yield chunk

    # -- life

    async def run(self) -> None:
        """Expire jobs and remove their media until cancelled."""
        while True:
            try:
                while ids := await self.database.run(self.store.sweep):
                    for id in ids:
                        await self._remove(id)
            except Exception as error:
                log.error("the sweep failed: %s", error, exc_info=not isinstance(error, FoleyError))
            await asyncio.sleep(SWEEP_INTERVAL_S)

    async def _remove(self, id: str) -> None:
        try:
            await self.media.remove(id)
            await self.database.run(self.store.removed, id)
        except Exception as error:  # it is tried again when the lease on the removal has lapsed
            log.error("job %s cannot be removed: %s", id, error, exc_info=not isinstance(error, FoleyError))

    async def drain(self, grace_s: float) -> None:
        """Reject new jobs, and wait up to `grace_s` seconds for the callers."""
        self.draining = True
        if self._calls:
            await asyncio.wait(set(self._calls), timeout=grace_s)

    async def abort(self) -> None:
        """End the remaining calls and watchers with a retryable ServerUnavailable."""
        self._aborting = True
        remaining = self._calls | self._watchers
        for task in remaining:
            task.cancel()
        if remaining:
            await asyncio.wait(remaining, timeout=RETRY_AFTER_S)

    @contextmanager
    def _place_for_upload(self) -> Iterator[None]:
        if self._uploading >= MAX_UPLOADS:
            error = Overloaded(f"{MAX_UPLOADS} uploads are in progress, the limit; try again later")
            error.retry_after_s = 10.0
            raise error
        self._uploading += 1
        try:
            yield
        finally:
            self._uploading -= 1

    def _check_calls(self) -> None:
        if len(self._called) >= self.max_calls:
            error = Overloaded(f"the server is at its request limit of {self.max_calls}; try again later")
            error.retry_after_s = 10.0
            raise error

    def _defaults(self) -> SamplingDefaults:
        try:
            return self.tritons.any().manifest.sampling
        except ServerUnavailable:
            return SamplingDefaults()


def error_of(job: Job) -> FoleyError | None:
    """Return the error of a job that has ended without a result, else None."""
    if job.state == "cancelled":
        return Cancelled("the generation was cancelled")
    if job.state == "deleting":
        error = ServerUnavailable("the server lost touch with its database; try again")
        error.retry_after_s = RETRY_AFTER_S
        return error
    return from_status(status_pb2.Status.FromString(job.result or b"")) if job.state == "failed" else None


def _shutting_down() -> ServerUnavailable:
    error = ServerUnavailable("the server is shutting down; try again in a moment")
    error.retry_after_s = RETRY_AFTER_S
    return error
