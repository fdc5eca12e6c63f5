"""Runs the work of requests on the current Triton: admission, queueing, time limits, cancellation and draining."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from foley.envelope import Floats
from foley.errors import ServerUnavailable, TimedOut
from foley_pipeline.cache import Cache
from foley_pipeline.foley import Foley
from foley_pipeline.job import Job, Sound, run
from foley_pipeline.reader import Reader
from foley_pipeline.watch import Watch
from foley_server.jobs.progress import Progress
from foley_server.jobs.request_queue import RequestQueue
from foley_server.launcher.supervisor import Supervisor
from foley_server.telemetry.metrics import Metrics
from foley_server.telemetry.tracing import trace_headers

Result = TypeVar("Result")

RETRY_AFTER_S = 2.0


@dataclass
class Engine:
    """Runs pipeline work in a pool of `running` threads. Not thread-safe: use it from one event loop.

    Attributes:
        supervisor: Provides the current Triton.
        queue: Admission control and queue.
        reader: Opens media files.
        cache: Cache of intermediate results.
        metrics: Prometheus metrics.
        running: Number of worker threads.
        request_timeout_s: Time limit of a request.
        max_sound_s: Maximum duration of the sound of one request, over all variations.
        draining: Whether new requests are rejected.
    """

    supervisor: Supervisor
    queue: RequestQueue
    reader: Reader
    cache: Cache
    metrics: Metrics
    running: int
    request_timeout_s: float
    max_sound_s: float
    draining: bool = False
    _aborting: bool = False
    _requests: set["asyncio.Task[Any]"] = field(default_factory=set)
    _watchers: set["asyncio.Task[Any]"] = field(default_factory=set)
    _abandoned: set["asyncio.Task[None]"] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._threads = ThreadPoolExecutor(self.running, "worker")

    @asynccontextmanager
    async def request(self, while_down: bool = False) -> AsyncIterator[None]:
        """Admit a request, from its first message to its last response.

        Args:
            while_down: Whether the request is admitted while Triton is down, because it does not need Triton now.

        Raises:
            Overloaded: The queue is full.
            ServerUnavailable: Triton is down, or the server is shutting down or stops before the request has ended.
        """
        if self.draining:
            raise _shutting_down()
        if not while_down:
            self.supervisor.triton()
        with self.queue.admit():
            async with self._tracked(self._requests):
                yield

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Register a call that only watches: it needs no admission, and draining does not wait for it.

        Raises:
            ServerUnavailable: The server stops before the call has ended.
        """
        async with self._tracked(self._watchers):
            yield

    @asynccontextmanager
    async def _tracked(self, tasks: set["asyncio.Task[Any]"]) -> AsyncIterator[None]:
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

    async def call(self, progress: Progress, work: Callable[[Foley, Watch], Result]) -> Result:
        """Wait for a slot, run `work` in a worker thread, and return its result.

        Cancellation takes effect at once and stops the work before its next call to Triton. The slot is held until the
        work has stopped, which a hanging model can delay until the supervisor restarts Triton.

        Args:
            progress: Receives the position in the queue and the progress of the work.
            work: Function of the pipeline and of a watch that cancels it.

        Raises:
            ServerUnavailable: Triton is down or fails; `retry_after_s` is set.
        """
        loop = asyncio.get_running_loop()
        async with AsyncExitStack() as slot:
            await slot.enter_async_context(self.queue.slot(progress.set_position))
            triton = self.supervisor.triton().for_request(progress.id, trace_headers())
            watch = _Watch(loop, progress)
            job = loop.run_in_executor(self._threads, work, Foley(triton, self.cache, self.reader), watch)
            try:
                return await asyncio.shield(job)
            except asyncio.CancelledError:
                watch.cancel()
                release = asyncio.create_task(_release_after(job, slot.pop_all()))
                self._abandoned.add(release)  # the event loop only keeps weak references to tasks
                release.add_done_callback(self._abandoned.discard)
                raise
            except ServerUnavailable as error:
                error.retry_after_s = error.retry_after_s or RETRY_AFTER_S
                raise
            finally:
                for stage, seconds in watch.timings_s.items():
                    self.metrics.stage(stage, seconds)

    async def generate(self, progress: Progress, job: Job) -> Sound:
        """Generate the sound of `job`.

        Args:
            job: What to generate.
            progress: Receives the envelope and the progress.

        Raises:
            TimedOut: The request took longer than `request_timeout_s`.
            FoleyError: The job is not valid, or it failed.
        """
        loop = asyncio.get_running_loop()

        def has_envelope(envelope: Floats) -> None:
            progress.envelope = envelope
            loop.call_soon_threadsafe(progress.changed)

        work = partial(run, job=job, on_envelope=has_envelope, max_sound_s=self.max_sound_s)
        return await self.in_time(self.call(progress, lambda foley, watch: work(foley, watch=watch)))

    async def in_time(self, work: Awaitable[Result]) -> Result:
        """Return the result of `work`.

        Raises:
            TimedOut: It took longer than `request_timeout_s`.
        """
        try:
            return await asyncio.wait_for(work, self.request_timeout_s)
        except asyncio.TimeoutError as error:
            raise TimedOut(
                f"the request took longer than {self.request_timeout_s:g} s; request less at once"
            ) from error

    async def drain(self, grace_s: float) -> None:
        """Reject new requests, and wait up to `grace_s` seconds for those in progress."""
        self.draining = True
        if self._requests:
            await asyncio.wait(set(self._requests), timeout=grace_s)

    async def abort(self) -> None:
        """End the remaining requests and watchers with a retryable ServerUnavailable."""
        self._aborting = True
        remaining = self._requests | self._watchers
        for task in remaining:
            task.cancel()
        if remaining:
            await asyncio.wait(remaining, timeout=RETRY_AFTER_S)

    def close(self) -> None:
        """Shut down the worker threads; work in progress stops at its next call to Triton."""
        self._threads.shutdown(wait=False, cancel_futures=True)


class _Watch(Watch):
    """Forwards progress from a worker thread to a `Progress` of the event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, progress: Progress) -> None:
        super().__init__()
        self._loop, self._progress = loop, progress

    def on_progress(self, name: str, done: int, total: int | None) -> None:
        self._progress.stage = name, done, total
        if name == "denoising":
            self._progress.done, self._progress.total = done, total or 0
            self._loop.call_soon_threadsafe(self._progress.changed)


async def _release_after(job: "asyncio.Future[Any]", slot: AsyncExitStack) -> None:
    """Release a slot when its abandoned job has ended, and drop the outcome."""
    # retrieve the exception, or asyncio logs it as unhandled
    job.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
    async with slot:
        await asyncio.wait([job])


def _shutting_down() -> ServerUnavailable:
    error = ServerUnavailable("the server is shutting down; try again in a moment")
    error.retry_after_s = RETRY_AFTER_S
    return error
