"""The methods of the SDK on a Triton server, without a public API."""

import os
import queue
import threading
import uuid
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from foley.container import DEFAULT_LIMITS, Limits
from foley.errors import Cancelled, FoleyError, InvalidInput, NotFinished, NotFound, ServerFailure
from foley_client._sync.client import Client
from foley_client._wire import AudioChunk, Event, JobStatus, State, new_request_id
from foley_client.embedded import embedded_triton
from foley_pipeline.cache import Cache
from foley_pipeline.cancellation import CancelToken
from foley_pipeline.media_loader import in_process
from foley_pipeline.progress import OnProgress, Progress, ignore_progress
from foley_pipeline.request import GenerationRequest
from foley_pipeline.result import GenerationResult
from foley_pipeline.rms2sound import Loop
from foley_pipeline.triton import TritonClient
from foley_pipeline.triton_backend import TritonBackend

CONCURRENT_JOBS = 4


class Foley(Client):
    """Video-Foley on a Triton server: a running one, or one that is started and stopped with this object.

    The methods are those of `FoleyClient`. Jobs of `create` run in threads of this process and end with it.

    Example:
        with Foley() as foley:
            foley.generate("hits.mp4", text="a stick hits metal").save("out.mp4")

    Args:
        server: `HOST:PORT` of the Triton's gRPC endpoint; None: `foley-server` is started, which must be installed.
        bundle: Bundle that a started server serves; None: the default of `foley-server`.
        cache: Folder for a cache of envelopes and embeddings; None: no cache.
        loop: Whether the diffusion loop runs on the client or on the server.
        limits: Limits on videos and recordings, such as `foley.container.limits_for(7200)`, or `NO_LIMITS`.

    Raises:
        ServerUnavailable: The server cannot be reached or started.
        SettingError: The address is not valid.
    """

    def __init__(
        self,
        server: str | None = None,
        *,
        bundle: str | os.PathLike[str] | None = None,
        cache: str | os.PathLike[str] | None = None,
        loop: Loop = "client",
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        with ExitStack() as stack:
            started = embedded_triton(Path(bundle) if bundle else None) if server is None else TritonClient(server)
            triton = stack.enter_context(started)
            folder = Cache(Path(cache)) if cache else None
            backend = TritonBackend(triton, cache=folder, loader=in_process(limits), loop=loop)
            local = LocalBackend(backend)
            super().__init__(local, limits)  # type: ignore[arg-type]  # it has the methods of `ApiBackend`
            self._stack = stack.pop_all()
        self.triton = triton

    def __repr__(self) -> str:
        return f"<Foley {self.triton.url}>"

    def close(self) -> None:
        """Cancel the running jobs, close the connection, and stop the server if this object started it."""
        with self._stack:
            super().close()


class LocalBackend(TritonBackend):
    """A `TritonBackend` with the streams and jobs of `ApiBackend`, in threads of this process."""

    def __init__(self, backend: TritonBackend) -> None:
        super().__init__(
            backend.triton,
            cache=backend.cache,
            loader=backend.loader,
            loop=backend.loop,
            max_sound_s=backend.max_sound_s,
        )
        self._jobs: dict[str, _Job] = {}
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(CONCURRENT_JOBS, "foley-job")

    def close(self) -> None:
        """Cancel all jobs and wait for their end."""
        for job in list(self._jobs.values()):
            job.cancel.cancel()
        self._pool.shutdown(cancel_futures=True)

    def serving(self) -> bool:
        """Return whether the server accepts work."""
        return self.triton.ready()

    def stream(
        self, request: GenerationRequest, *, progress: OnProgress = ignore_progress, cancel: CancelToken | None = None
    ) -> Generator[Event, None, None]:
        """See `ApiBackend.stream`; `progress` receives nothing, because nothing is uploaded."""
        events: queue.SimpleQueue[Progress | GenerationResult | BaseException] = queue.SimpleQueue()
        with (cancel or CancelToken()).child() as token:

            def run() -> None:
                try:
                    events.put(self.generate(request, progress=events.put, cancel=token))
                except BaseException as error:
                    events.put(error)

            thread = threading.Thread(target=run, name="foley-stream")
            thread.start()
            try:
                while isinstance(event := events.get(), Progress):
                    yield event
            finally:
                token.cancel()  # no effect if the generation has ended
                thread.join()
            if isinstance(event, BaseException):
                raise event
            for variation, take in enumerate(event.takes):
                yield AudioChunk(variation, take.waveform)
            yield event

    def create(
        self,
        request: GenerationRequest,
        *,
        request_id: str | None = None,
        progress: OnProgress = ignore_progress,
        cancel: CancelToken | None = None,
    ) -> str:
        """See `ApiBackend.create`; the job ends with this process."""
        chosen = request_id or new_request_id()
        try:
            name = f"operations/{uuid.UUID(chosen).hex}"
        except ValueError as error:
            raise InvalidInput(f"request_id is {chosen!r}; use a UUID") from error
        with self._lock:
            if name not in self._jobs:
                job = _Job(name, chosen)
                job.future = self._pool.submit(job.run, self, request)
                self._jobs[name] = job
        return name

    def wait(
        self, name: str, *, progress: OnProgress = ignore_progress, cancel: CancelToken | None = None
    ) -> GenerationResult:
        """See `ApiBackend.wait`."""
        job, ended = self._find(name), threading.Event()
        with (cancel or CancelToken()).child() as token, token.on_cancel(ended.set):

            def report(event: Progress) -> None:
                try:
                    progress(event)
                except Exception as error:  # ends this wait, not the job
                    token.cancel(error)

            job.listeners.append(report)
            try:
                job.future.add_done_callback(lambda _: ended.set())
                ended.wait()
                token.check()
            finally:
                job.listeners.remove(report)
        if error := job.error():
            raise error
        return job.future.result()

    def status(self, name: str) -> JobStatus:
        """See `ApiBackend.status`."""
        return self._find(name).status()

    def generations(self) -> Iterator[JobStatus]:
        """See `ApiBackend.generations`."""
        return (job.status() for job in reversed(list(self._jobs.values())))

    def cancel(self, name: str) -> None:
        """See `ApiBackend.cancel`."""
        job = self._find(name)
        job.cancel.cancel()
        job.future.cancel()

    def delete(self, name: str) -> None:
        """See `ApiBackend.delete`."""
        if not self._find(name).future.done():
            raise NotFinished("the generation has not ended; cancel it first")
        del self._jobs[name]

    def _find(self, name: str) -> "_Job":
        if name not in self._jobs:
            raise NotFound(f"there is no generation {name!r}; it may have been deleted")
        return self._jobs[name]


class _Job:
    """A generation in a thread of this process."""

    def __init__(self, name: str, request_id: str) -> None:
        self.name, self.request_id = name, request_id
        self.cancel = CancelToken()
        self.listeners: list[OnProgress] = []
        self.future: Future[GenerationResult] = Future()
        self._progress: Progress | None = None

    def run(self, backend: TritonBackend, request: GenerationRequest) -> GenerationResult:
        return backend.generate(request, progress=self._report, cancel=self.cancel)

    def _report(self, progress: Progress) -> None:
        self._progress = progress
        for listener in list(self.listeners):
            listener(progress)

    def error(self) -> FoleyError | None:
        """Return the error that ended the job, if any."""
        if not self.future.done():
            return None
        error = Cancelled("cancelled") if self.future.cancelled() else self.future.exception()
        return error if isinstance(error, FoleyError | None) else ServerFailure(f"internal error ({error})")

    def status(self) -> JobStatus:
        error, progress = self.error(), None
        state: State = "queued"
        if isinstance(error, Cancelled):
            state = "cancelled"
        elif self.future.done():
            state = "failed" if error else "succeeded"
        elif self.future.running():
            state, progress = "running", self._progress
        return JobStatus(self.name, self.request_id, state, 0, progress, error)
