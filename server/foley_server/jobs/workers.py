"""Claims jobs and runs them on the Tritons."""

import asyncio
import json
import logging
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from foley.errors import (
    Cancelled,
    DatabaseUnavailable,
    FoleyError,
    MediaUnavailable,
    Overloaded,
    ServerFailure,
    ServerUnavailable,
    TimedOut,
)
from foley_pipeline.api.status import to_status
from foley_pipeline.cache import Cache
from foley_pipeline.cancellation import CancelToken
from foley_pipeline.media_loader import MediaLoader
from foley_pipeline.progress import Progress as StageProgress
from foley_pipeline.progress import Stage
from foley_pipeline.triton import TritonClient
from foley_pipeline.triton_backend import TritonBackend
from foley_server.jobs import events
from foley_server.jobs.database_threads import DatabaseThreads
from foley_server.jobs.leases import Leases
from foley_server.jobs.media_store import MediaStore
from foley_server.jobs.progress import ENVELOPE, Progress
from foley_server.jobs.store import Job, State, Store
from foley_server.jobs.upload import RECORDING, VIDEO, Uploads
from foley_server.jobs.watches import Watches, media_folder
from foley_server.jobs.work import Result, prepare
from foley_server.launcher.pool import TritonPool
from foley_server.telemetry import logs
from foley_server.telemetry.metrics import Metrics
from foley_server.telemetry.tracing import call_span, trace_headers

log = logging.getLogger(__name__)

MAX_ATTEMPTS = 5  # crashes of the server or of Triton during a job, before it fails
REPORT_S = 0.5  # between two reports of progress to the database
PUT_DELAYS_S = (1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 60.0, 60.0)  # between attempts to store a result
POLL_S = 0.5  # between two attempts to claim, without a signal
STOP_S = 5.0  # for work to end after it was cancelled; a call that hangs ends later


@dataclass(frozen=True)
class Run:
    """A job that this process runs.

    Attributes:
        job: The claimed job.
        progress: Its progress.
        lost: Set when the job was cancelled, or when its lease went to another process.
        cancel: Cancels its work.
    """

    job: Job
    progress: Progress
    lost: asyncio.Event
    cancel: CancelToken = field(default_factory=CancelToken)

    @property
    def is_lost(self) -> bool:
        """Whether its outcome no longer counts."""
        return self.lost.is_set() or self.progress.over

    @property
    def key(self) -> tuple[str, int]:
        """Identity of the claim."""
        return self.job.id, self.job.starts


@dataclass
class Workers:
    """Runs up to `running` jobs concurrently. Not thread-safe: use it from one event loop.

    Attributes:
        leases: The leases of this process.
        store: The jobs.
        database: Runs the store's methods.
        media: Files of the jobs.
        watches: Progress of the jobs.
        tritons: The Tritons.
        uploads: Folders for local copies of files.
        loader: Opens untrusted media.
        cache: Cache of intermediate results.
        metrics: Prometheus metrics.
        running: Number of jobs that run concurrently.
        timeout_s: Time limit of a job, from its start.
        keep_s: Time for which ended jobs are kept.
        max_sound_s: Maximum duration of the sound of a job, over all variations.
        scope: Prefix of the names of the Tritons in the store; not empty if they are only this process's.
        draining: Whether only jobs are claimed whose caller this process serves.
    """

    leases: Leases
    store: Store
    database: DatabaseThreads
    media: MediaStore
    watches: Watches
    tritons: TritonPool
    uploads: Uploads
    loader: MediaLoader
    cache: Cache
    metrics: Metrics
    running: int
    timeout_s: float
    keep_s: float
    max_sound_s: float
    scope: str = ""
    draining: bool = False

    def __post_init__(self) -> None:
        self._runs: dict[tuple[str, int], Run] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._charges: set[asyncio.Task[None]] = set()
        self._threads = ThreadPoolExecutor(2 * self.running, "worker")  # a call that hangs keeps its thread for a while
        self._wakeup = asyncio.Event()
        self.watches.on_change.append(self._wakeup)

    @property
    def active(self) -> int:
        """Number of jobs that run."""
        return len(self._tasks)

    async def run(self) -> None:
        """Claim and run jobs until cancelled; then put those that run back into the queue."""
        loops = [asyncio.create_task(one()) for one in (self._claim, self._report)]
        try:
            done, _ = await asyncio.wait(loops, return_when=asyncio.FIRST_COMPLETED)
            for one in done:
                one.result()  # they end with an error only
        finally:
            stopping = (*loops, *self._tasks)
            for one in stopping:
                one.cancel()
            await asyncio.wait(stopping, timeout=2 * STOP_S)
            self._threads.shutdown(wait=False, cancel_futures=True)

    async def drain(self, grace_s: float) -> None:
        """Claim no more jobs but those of this process's callers; wait up to `grace_s` seconds for the running ones."""
        self.draining = True
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=grace_s)

    async def _claim(self) -> None:
        while True:
            self._wakeup.clear()
            try:
                names = [self.scope + name for name in self.tritons.available()] if self.active < self.running else []
                holder = self.leases.holder
                caller = holder if self.draining else None
                claimed = await self.database.run(self.store.claim, holder, names, caller) if names else None
            except Exception as error:  # a claim whose answer was lost lapses
                log.error("no job can be claimed: %s", error, exc_info=not isinstance(error, FoleyError))
                await asyncio.sleep(POLL_S)
                continue
            if claimed:
                task = asyncio.create_task(self._process(*claimed))
                self._tasks.add(task)  # the event loop keeps only weak references to tasks
                task.add_done_callback(self._ended)
            else:
                await events.wait(self._wakeup, POLL_S)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        self._wakeup.set()

    async def _report(self) -> None:
        """Store the progress of the running jobs, for the watchers in other processes."""
        reported: dict[tuple[str, int], int] = {}
        envelopes: set[tuple[str, int]] = set()
        while True:
            await asyncio.sleep(REPORT_S)
            envelopes &= self._runs.keys()
            reported = {key: version for key, version in reported.items() if key in self._runs}
            for run in list(self._runs.values()):
                version = run.progress.version
                if reported.get(run.key) != version:
                    with suppress(FoleyError):
                        if self._runs.get(run.key) is not run:
                            continue  # it has ended meanwhile
                        if run.progress.envelope is not None and run.key not in envelopes:
                            content = np.asarray(run.progress.envelope, "<f4").tobytes()
                            await self.media.put(run.job.id, f"{media_folder(run.job)}{ENVELOPE}", content)
                            envelopes.add(run.key)
                        await self.database.run(self.store.report, run.job, run.progress.dumps())
                        reported[run.key] = version

    async def _process(self, job: Job, request: bytes) -> None:
        logs.request_id.set(job.id)
        with (
            self.watches.watch(job.id) as progress,
            self.leases.run_of(job) as lost,
            call_span(job.kind, job.id, json.loads(job.trace)),
        ):
            run = Run(job, progress, lost)
            progress.restart(job.starts)
            progress.local = True
            progress.set_position(0)
            self._runs[run.key] = run
            try:
                await self._run(run, request)
            except Cancelled:
                with suppress(FoleyError):  # else they go with the job
                    await self.media.remove(job.id, media_folder(job))
                with suppress(FoleyError):  # else the lease lapses
                    await self.database.run(self.store.let_go, job)
            finally:
                del self._runs[run.key]
                progress.local = False
                self.watches.changed(job.id)

    async def _run(self, run: Run, request: bytes) -> None:
        job = run.job
        try:
            client = self.tritons.client((job.triton or "").removeprefix(self.scope))
        except ServerUnavailable as error:  # lost since the claim; not by this job
            await self._requeue(run, error, counts=False)
            return
        try:
            if job.attempts >= MAX_ATTEMPTS:
                raise ServerFailure(f"the job crashed the server {MAX_ATTEMPTS} times; {_report_it(job)}")
            result = await self._execute(run, request, client.for_request(job.id, trace_headers()))
            for name, content in result.files.items():
                await self._put(run, name, content)
            await self._end(run, "succeeded", result.message, sum(map(len, result.files.values())))
        except asyncio.CancelledError:  # the server stops
            with suppress(FoleyError):  # if it fails, the lease lapses
                await self.database.run(self.store.requeue, job, False)
            raise
        except Cancelled:
            raise
        except (MediaUnavailable, DatabaseUnavailable, Overloaded) as error:  # the last one: all decoders are busy
            await self._requeue(run, error, counts=False)
        except ServerUnavailable as error:
            await self._requeue(run, error, counts=True)
        except ServerFailure as error:
            checking = asyncio.get_running_loop().run_in_executor(
                self._threads, self.tritons.failed, (job.triton or "").removeprefix(self.scope), error
            )
            broken = await checking
            await (self._requeue(run, error, counts=True) if broken else self._fail(run, error))
        except FoleyError as error:
            await self._fail(run, error)
        except Exception:
            log.exception("internal error in a job")
            await self._fail(run, ServerFailure(f"internal error; {_report_it(job)}"))

    async def _execute(self, run: Run, request: bytes, client: TritonClient) -> Result:
        """Run the work of a job in a thread.

        Raises:
            TimedOut: It took longer than `timeout_s`.
            Cancelled: The job was cancelled, or its lease went to another process.
            FoleyError: It failed.
        """
        job, loop = run.job, asyncio.get_running_loop()
        backend = TritonBackend(client, cache=self.cache, loader=self.loader, max_sound_s=self.max_sound_s)
        with self.uploads.folder() as folder:
            work = prepare(job.kind, request, folder)
            for path in work.files.values():
                await self.media.fetch(job.id, path.name, path)
            rows_per_step = work.rows_per_step(client.manifest.sampling)

            def on_progress(event: StageProgress) -> None:
                loop.call_soon_threadsafe(self._on_progress, run, event, rows_per_step)

            thread = loop.run_in_executor(self._threads, work.run, backend, on_progress, run.cancel)
            ended = asyncio.ensure_future(run.progress.wait())
            lost = asyncio.ensure_future(run.lost.wait())
            try:
                waits: list[asyncio.Future[Any]] = [thread, ended, lost]
                await asyncio.wait(waits, timeout=self.timeout_s, return_when=asyncio.FIRST_COMPLETED)
                if thread.done():
                    return thread.result()
                if run.is_lost:
                    raise _lost()
                raise TimedOut(f"the job took longer than {self.timeout_s:g} s; request less at once")
            finally:
                ended.cancel()
                lost.cancel()
                if not thread.done():
                    run.cancel.cancel()
                    thread.add_done_callback(lambda late: late.cancelled() or late.exception())  # or asyncio logs it
                    await asyncio.wait([thread], timeout=STOP_S)

    def _on_progress(self, run: Run, event: StageProgress, rows_per_step: int) -> None:
        if event.seconds is not None:
            self.metrics.stage(event.stage, event.seconds)
        if self._runs.get(run.key) is not run:
            return  # it has ended, and its thread has not noticed yet
        run.progress.report(event)
        if event.stage == Stage.DENOISE and event.total and not event.done:
            charging = asyncio.create_task(self._charge(run.job, event.total * rows_per_step))
            self._charges.add(charging)
            charging.add_done_callback(self._charges.discard)

    async def _charge(self, job: Job, rows: int) -> None:
        with suppress(FoleyError):
            await self.database.run(self.store.charge, job, rows)

    async def _requeue(self, run: Run, error: FoleyError, counts: bool) -> None:
        log.warning("a job is queued again: %s", error)
        delay_s = error.retry_after_s or POLL_S  # the pool may not have noticed yet that Triton is down
        await self.database.insist(self.store.requeue, run.job, counts, delay_s)

    async def _fail(self, run: Run, error: FoleyError) -> None:
        await self._end(run, "failed", to_status(error, run.job.id).SerializeToString(), 0)

    async def _end(self, run: Run, state: State, message: bytes, size: int) -> None:
        """Store the outcome of a job, then remove its uploaded files.

        Raises:
            Cancelled: The job was cancelled, or its lease went to another process.
        """
        job = run.job
        if not await self.database.insist(self.store.end, job, state, message, run.progress.dumps(), size, self.keep_s):
            raise _lost()
        with suppress(FoleyError):  # else they go with the job
            await self.media.remove_files(job.id, VIDEO, RECORDING)

    async def _put(self, run: Run, name: str, content: bytes) -> None:
        """Store a file of the result; try again for some minutes, as to make it anew costs more.

        Raises:
            Cancelled: The job was cancelled, or its lease went to another process.
            MediaUnavailable: The media storage is still unavailable.
        """
        for delay_s in (*PUT_DELAYS_S, None):
            try:
                return await self.media.put(run.job.id, f"{media_folder(run.job)}{name}", content)
            except MediaUnavailable:
                if delay_s is None:
                    raise
                await asyncio.sleep(delay_s)
                if run.is_lost:
                    raise _lost() from None


def _lost() -> Cancelled:
    return Cancelled("the job was cancelled, or its lease has lapsed")


def _report_it(job: Job) -> str:
    return f"report the id {job.id} to the server's operator"
