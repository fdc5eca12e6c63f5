"""Runs the work of requests on the current Triton: admission, queueing, time limits, cancellation and draining."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from foley.errors import ServerUnavailable, TimedOut
from foley_pipeline.cache import Cache
from foley_pipeline.cancellation import CancelToken
from foley_pipeline.media_loader import MediaLoader
from foley_pipeline.progress import OnProgress
from foley_pipeline.progress import Progress as StageProgress
from foley_pipeline.request import GenerationRequest
from foley_pipeline.result import GenerationResult
from foley_pipeline.triton_backend import TritonBackend
from foley_server.jobs.progress import Progress
from foley_server.jobs.request_queue import RequestQueue
from foley_server.launcher.pool import TritonPool
from foley_server.telemetry.metrics import Metrics
from foley_server.telemetry.tracing import trace_headers

Result = TypeVar("Result")
Work = Callable[[TritonBackend, OnProgress, CancelToken], Result]
"""A call of a backend, with its progress and cancellation."""

RETRY_AFTER_S = 2.0


@dataclass
class Engine:
    """Runs pipeline work in a pool of `running` threads. Not thread-safe: use it from one event loop.

    Attributes:
        supervisor: Provides the current Triton.
        queue: Admission control and queue.
        loader: Opens media files.
        cache: Cache of intermediate results.
        metrics: Prometheus metrics.
        running: Number of worker threads.
        request_timeout_s: Time limit of a request.
        max_sound_s: Maximum duration of the sound of one request, over all variations.
        draining: Whether new requests are rejected.
    """

    supervisor: TritonPool
    queue: RequestQueue
    loader: MediaLoader
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
            self.supervisor.any()
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

    async def call(self, progress: Progress, work: Work[Result]) -> Result:
        """Wait for a slot, run `work` in a worker thread, and return its result.

        Cancellation takes effect at once and stops the work before its next call to Triton. The slot is held until the
        work has stopped, which a hanging model can delay until the supervisor restarts Triton.

        Args:
            progress: Receives the position in the queue and the progress of the work.
            work: The call of the backend.

        Raises:
            ServerUnavailable: Triton is down or fails; `retry_after_s` is set.
        """
        loop = asyncio.get_running_loop()
        async with AsyncExitStack() as slot:
            await slot.enter_async_context(self.queue.slot(progress.set_position))
            triton = self.supervisor.any().for_request(progress.id, trace_headers())
            backend = TritonBackend(triton, cache=self.cache, loader=self.loader, max_sound_s=self.max_sound_s)
            cancel = CancelToken()

            def on_progress(event: StageProgress) -> None:
                loop.call_soon_threadsafe(self._report, progress, event)

            job = loop.run_in_executor(self._threads, work, backend, on_progress, cancel)
            try:
                return await asyncio.shield(job)
            except asyncio.CancelledError:
                cancel.cancel()
                release = asyncio.create_task(_release_after(job, slot.pop_all()))
                self._abandoned.add(release)  # the event loop only keeps weak references to tasks
                release.add_done_callback(self._abandoned.discard)
                raise
            except ServerUnavailable as error:
                error.retry_after_s = error.retry_after_s or RETRY_AFTER_S
                raise

    def _report(self, progress: Progress, event: StageProgress) -> None:
        if event.seconds is not None:
            self.metrics.stage(event.stage, event.seconds)
        progress.report(event)

    async def generate(self, progress: Progress, request: GenerationRequest) -> GenerationResult:
        """Generate sound.

        Args:
            progress: Receives the envelope and the progress.
            request: What to generate.

        Raises:
            TimedOut: The request took longer than `request_timeout_s`.
            FoleyError: The request is not valid, or it failed.
        """

        def work(backend: TritonBackend, on_progress: OnProgress, cancel: CancelToken) -> GenerationResult:
            return backend.generate(request, progress=on_progress, cancel=cancel)

        return await self.in_time(self.call(progress, work))

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
