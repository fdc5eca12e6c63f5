"""The API server process: Triton supervisor, gRPC services, health, metrics, studio and graceful shutdown."""

import asyncio
import ctypes
import fcntl
import logging
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

from grpc_health.v1 import health, health_pb2

from foley import bundle as bundles
from foley.errors import OutputError, ServerUnavailable
from foley.mux import VIDEO_EXTENSIONS
from foley.scratch import scratch_folder
from foley_pipeline.cache import Cache
from foley_server.api.certificates import Certificates
from foley_server.api.gauges import register_gauges
from foley_server.api.interceptor import CallInterceptor
from foley_server.api.listen import SERVICES, grpc_server, listen
from foley_server.api.operations import Operations
from foley_server.api.service import FoleyService
from foley_server.api.settings import Settings
from foley_server.api.tokens import Tokens
from foley_server.jobs.engine import Engine
from foley_server.jobs.generations import Generations
from foley_server.jobs.media_store import MediaStore
from foley_server.jobs.request_queue import RequestQueue
from foley_server.jobs.store import Store
from foley_server.jobs.upload import Uploads
from foley_server.launcher.supervisor import EmbeddedTriton, RemoteTriton, Supervisor
from foley_server.sandbox.sandbox import Sandbox
from foley_server.telemetry import logs, tracing
from foley_server.telemetry.metrics import Metrics
from foley_server.telemetry.metrics_server import MetricsServer
from foley_server.telemetry.samples import FreeSpace, LoopLag, Snapshot, sampling

log = logging.getLogger(__name__)

M_ARENA_MAX = -8  # from malloc.h
STOP_TIMEOUT_S = 2.0  # for delivering final responses after everything else has stopped


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then drain and stop.

    Prints one line when it is ready: `ready grpc=ADDRESS:PORT metrics=ADDRESS:PORT`.

    Raises:
        SettingError: A setting is not valid.
        OutputError: A port is in use, or the data folder cannot be used.
        BundleError: The bundle is missing, incomplete or damaged.
        ServerUnavailable: Triton did not start.
    """
    with suppress(AttributeError):  # not glibc
        # glibc creates arenas per thread, which retain the memory of large messages: twice the memory, no faster
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 2)
    logs.configure(settings.log_level)
    with tracing.exporting(str(settings.trace) if settings.trace else None, settings.trace_share):
        asyncio.run(_serve(settings))


async def _serve(settings: Settings) -> None:
    stopped = _stop_signal(settings.until_stdin_closes)
    metrics = Metrics()
    async with AsyncExitStack() as stack:
        metrics_server = MetricsServer(
            metrics, settings.metrics_address, settings.metrics_port, asyncio.get_running_loop()
        )
        stack.callback(metrics_server.close)
        data = stack.enter_context(_data_folder(settings.data))
        uploads = Uploads(
            stack.enter_context(scratch_folder("uploads-", parent=data)),
            settings.upload_mib * 2**20,
        )
        tokens, certificates = Tokens(settings.tokens), Certificates.of(settings)
        store = Store(data / "generations.sqlite")
        stack.callback(store.close)
        media = MediaStore(settings.media_location)
        health_service = health.aio.HealthServicer()
        supervisor = await _supervisor(settings, health_service)
        stack.callback(supervisor.stop)
        queue = RequestQueue(settings.running, settings.waiting)
        lag, space = LoopLag(), FreeSpace(data)
        stack.callback(space.close)
        job_counts = Snapshot("the store", partial(asyncio.to_thread, store.snapshot))
        await stack.enter_async_context(sampling(lag, job_counts))
        triton = settings.triton or "embedded"
        metrics.gauge("triton_starts", "Starts of Triton, or connections to it.", lambda: supervisor.starts)
        register_gauges(metrics, settings, queue, job_counts, lag, space, lambda: {triton: supervisor.ready}, "limits")
        await asyncio.to_thread(supervisor.start)

        sandbox = Sandbox(settings.limits, settings.decoder_mib * 2**20, settings.decoder_cpu, settings.decoder_wall)
        engine = Engine(
            supervisor,
            queue,
            sandbox.loader,
            Cache(data / "results"),
            metrics,
            settings.running,
            settings.request_timeout,
            settings.sound,
        )
        stack.callback(engine.close)
        generations = Generations(
            store, media, engine, uploads, settings.running, settings.stored, settings.keep_results
        )
        with suppress(ServerUnavailable):  # it has failed since
            versions = supervisor.triton().versions
            metrics.build(versions["bundle"], versions["bundle_sha256"])
        service = FoleyService(engine, generations, uploads, metrics, settings.upload_timeout, settings.duration)
        interceptor = CallInterceptor(tokens, metrics)
        server = grpc_server(settings, interceptor, health_service, service, Operations(generations))
        port = listen(server, settings.address, settings.port, certificates)
        metrics_server.triton = lambda: supervisor.metrics_url
        await server.start()
        await _set_health(health_service, supervisor.ready)
        metrics_server.ready = lambda: supervisor.ready and not stopped.done()
        jobs = asyncio.create_task(generations.run())
        ready = f"ready grpc={settings.address}:{port} metrics={settings.metrics_address}:{metrics_server.port}"
        if settings.studio:
            studio = _studio(settings, engine, sandbox, uploads, tokens, certificates)
            ready += f" studio={await stack.enter_async_context(studio)}"
        sys.stdout.write(f"{ready}\n")
        sys.stdout.flush()

        await asyncio.wait([stopped, jobs], return_when=asyncio.FIRST_COMPLETED)
        log.info("draining")
        await health_service.enter_graceful_shutdown()
        await asyncio.gather(engine.drain(settings.grace), generations.drain(settings.grace))
        await engine.abort()
        jobs.cancel()
        with suppress(asyncio.CancelledError):
            await jobs
        await server.stop(STOP_TIMEOUT_S)
        log.info("stopped")


def _studio(
    settings: Settings,
    engine: Engine,
    sandbox: Sandbox,
    uploads: Uploads,
    tokens: Tokens,
    certificates: Certificates | None,
) -> AbstractAsyncContextManager[str]:
    """Return the context that serves the studio and yields its URL."""
    from foley_server.http.app import Studio  # deferred: the HTTP stack is slow to import and rarely used
    from foley_server.http.files import StudioFiles
    from foley_server.http.serve import serve_studio

    studio = Studio(
        engine,
        sandbox,
        StudioFiles(uploads.root / "studio"),
        {path.name: path for path in sorted(settings.studio_examples.glob("*")) if path.suffix in VIDEO_EXTENSIONS},
        tokens,
        uploads.max_bytes,
        settings.duration,
        settings.upload_timeout,
    )
    return serve_studio(studio, settings, certificates)


async def _supervisor(settings: Settings, health_service: health.aio.HealthServicer) -> Supervisor:
    loop = asyncio.get_running_loop()

    def on_change(ready: bool) -> None:
        with suppress(RuntimeError):  # the event loop is closed
            asyncio.run_coroutine_threadsafe(_set_health(health_service, ready), loop)

    if settings.triton:
        joined = RemoteTriton(settings.triton, str(settings.triton_metrics or "") or None)
        return Supervisor(joined, on_change, settings.hang_timeout)
    bundle = bundles.read(settings.bundle)
    await asyncio.to_thread(bundles.verify, bundle)  # reads every file
    embedded = EmbeddedTriton(settings.models, bundle, str(settings.trace) if settings.trace else None)
    return Supervisor(embedded, on_change, settings.hang_timeout)


async def _set_health(service: health.aio.HealthServicer, ready: bool) -> None:
    status = health_pb2.HealthCheckResponse.SERVING if ready else health_pb2.HealthCheckResponse.NOT_SERVING
    for name in ("", *SERVICES):
        await service.set(name, status)


@contextmanager
def _data_folder(path: Path) -> Iterator[Path]:
    """Create the data folder, lock it for this process, and yield its absolute path.

    Raises:
        OutputError: The folder cannot be used, or another server holds the lock.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = (path / "lock").open("wb")
    except OSError as error:
        raise OutputError(f"the data folder {path} cannot be used ({error.strerror}); choose another") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise OutputError(f"another server uses the data folder {path}; choose another") from error
        yield path.resolve()


def _stop_signal(when_stdin_closes: bool) -> "asyncio.Future[None]":
    """Return a future that is done on SIGTERM or SIGINT, or at the end of standard input."""
    loop = asyncio.get_running_loop()
    stopped = loop.create_future()

    def stop() -> None:
        if not stopped.done():
            stopped.set_result(None)

    def read_stdin() -> None:
        sys.stdin.buffer.read()
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(stop)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    if when_stdin_closes:
        threading.Thread(target=read_stdin, daemon=True).start()
    return stopped
