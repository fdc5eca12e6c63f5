"""Does what requests ask for: one after the other, on the Triton that is there, until it is done or nobody wants it."""

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
from foley_server.api.line import Line
from foley_server.api.metrics import Metrics
from foley_server.api.progress import Progress
from foley_server.api.supervisor import Supervisor
from foley_server.api.tracing import trace_headers

Result = TypeVar("Result")

RETRY_AFTER_S = 2.0


@dataclass
class Engine:
    """Belongs to one event loop; the work itself is done by `running` threads."""

    supervisor: Supervisor
    line: Line
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
    _leaving: set["asyncio.Task[None]"] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._threads = ThreadPoolExecutor(self.running, "work")

    @asynccontextmanager
    async def request(self, later: bool = False) -> AsyncIterator[None]:
        """One request, from its first message to its last answer; `later`: it does not need Triton now.

        Raises:
            Overloaded: there is no place for it.
            ServerUnavailable: the server is about to end, or ends before the request does.
        """
        if self.draining:
            raise _ending()
        if not later:
            self.supervisor.triton()
        with self.line.place():
            async with self._until_the_end(self._requests):
                yield

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """A call that only watches: it takes no place, and no drain waits for it. Raises ServerUnavailable then."""
        async with self._until_the_end(self._watchers):
            yield

    @asynccontextmanager
    async def _until_the_end(self, tasks: set["asyncio.Task[Any]"]) -> AsyncIterator[None]:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            yield
        except asyncio.CancelledError:
            if self._aborting:
                raise _ending() from None
            raise
        finally:
            tasks.discard(task)

    async def call(self, progress: Progress, work: Callable[[Foley, Watch], Result]) -> Result:
        """What `work` returns, in its turn.

        Cancelling this raises at once and stops the work before its next call to Triton. The turn lasts until the work
        has really stopped, which a model that hangs can delay until the supervisor restarts Triton.
        """
        loop = asyncio.get_running_loop()
        async with AsyncExitStack() as turn:
            await turn.enter_async_context(self.line.turn(progress.at))
            triton = self.supervisor.triton().for_request(progress.id, trace_headers())
            watch = _Watch(loop, progress)
            job = loop.run_in_executor(self._threads, work, Foley(triton, self.cache, self.reader), watch)
            try:
                return await asyncio.shield(job)
            except asyncio.CancelledError:
                watch.cancel()
                leaving = asyncio.create_task(_close_after(job, turn.pop_all()))
                self._leaving.add(leaving)  # the loop itself holds only weak references
                leaving.add_done_callback(self._leaving.discard)
                raise
            except ServerUnavailable as error:
                error.retry_after_s = error.retry_after_s or RETRY_AFTER_S
                raise
            finally:
                for stage, seconds in watch.timings_s.items():
                    self.metrics.stage(stage, seconds)

    async def generate(self, progress: Progress, job: Job) -> Sound:
        """Do `job`; `progress` says how far it is. Raises what is wrong with it, and TimedOut."""
        loop = asyncio.get_running_loop()

        def has_envelope(envelope: Floats) -> None:
            progress.envelope = envelope
            loop.call_soon_threadsafe(progress.changed)

        work = partial(run, job=job, on_envelope=has_envelope, max_sound_s=self.max_sound_s)
        return await self.in_time(self.call(progress, lambda foley, watch: work(foley, watch=watch)))

    async def in_time(self, work: Awaitable[Result]) -> Result:
        """What `work` returns. Raises TimedOut when it takes longer than a request may."""
        try:
            return await asyncio.wait_for(work, self.request_timeout_s)
        except asyncio.TimeoutError as error:
            raise TimedOut(f"this took more than {self.request_timeout_s:g} s; ask for less at once") from error

    async def drain(self, grace_s: float) -> None:
        """Take nothing more on, and wait for what is there, no longer than this."""
        self.draining = True
        if self._requests:
            await asyncio.wait(set(self._requests), timeout=grace_s)

    async def abort(self) -> None:
        """End what is still there, and those who watch, with an error that may be retried."""
        self._aborting = True
        left = self._requests | self._watchers
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=RETRY_AFTER_S)

    def close(self) -> None:
        """End the threads; what they still do ends with its next call to Triton."""
        self._threads.shutdown(wait=False, cancel_futures=True)


class _Watch(Watch):
    """Tells a `Progress` of another thread how far the denoising is."""

    def __init__(self, loop: asyncio.AbstractEventLoop, progress: Progress) -> None:
        super().__init__()
        self._loop, self._progress = loop, progress

    def on_progress(self, name: str, done: int, total: int | None) -> None:
        self._progress.stage = name, done, total
        if name == "denoising":
            self._progress.done, self._progress.total = done, total or 0
            self._loop.call_soon_threadsafe(self._progress.changed)


async def _close_after(job: "asyncio.Future[Any]", turn: AsyncExitStack) -> None:
    """Give a turn back when its abandoned job has ended; its outcome is dropped."""
    job.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # or asyncio logs it as unhandled
    async with turn:
        await asyncio.wait([job])


def _ending() -> ServerUnavailable:
    error = ServerUnavailable("the server is being restarted; try again in a moment")
    error.retry_after_s = RETRY_AFTER_S
    return error
