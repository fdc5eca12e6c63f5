"""The API server process: Triton supervisor, gRPC services, health, metrics, studio and graceful shutdown."""

import asyncio
import ctypes
import fcntl
import logging
import resource
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, contextmanager, suppress
from pathlib import Path

import grpc
from google.longrunning import operations_pb2, operations_pb2_grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from foley import bundle as bundles
from foley.errors import OutputError, SettingError
from foley.mux import VIDEO_EXTENSIONS
from foley.scratch import scratch_folder
from foley_pipeline.api import foley_pb2 as pb
from foley_pipeline.api import foley_pb2_grpc
from foley_pipeline.cache import Cache
from foley_pipeline.grpc_options import KEEPALIVE, MIN_PING_INTERVAL_MS
from foley_server.api.interceptor import CallInterceptor
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
from foley_server.launcher.pool import TritonPool
from foley_server.launcher.supervisor import EmbeddedTriton
from foley_server.sandbox.sandbox import Sandbox
from foley_server.telemetry import logs, tracing
from foley_server.telemetry.metrics import Metrics, MetricsServer

log = logging.getLogger(__name__)

SERVICES = (
    pb.DESCRIPTOR.services_by_name["FoleyService"].full_name,
    operations_pb2.DESCRIPTOR.services_by_name["Operations"].full_name,
)
MAX_MESSAGE = 4 * 2**20  # gRPC's default limit; also applies after decompression
MAX_OPEN_FILES = 65_536
MAX_CONNECTIONS = 10_000  # upper limit, see `_connection_limit`; further connections are closed at once
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
    async with AsyncExitStack() as stack:
        data = stack.enter_context(_data_folder(settings.data))
        uploads = Uploads(
            stack.enter_context(scratch_folder("uploads-", parent=data)),
            settings.upload_mib * 2**20,
        )
        tokens, metrics = Tokens(settings.tokens), Metrics()
        store = Store(data / "generations.sqlite")
        stack.callback(store.close)
        media = MediaStore(settings.media_location)
        health_service = health.aio.HealthServicer()
        supervisor = _supervisor(settings, health_service)
        stack.callback(supervisor.stop)
        supervisor.start()
        await asyncio.wait([stopped, asyncio.wrap_future(supervisor.started)], return_when=asyncio.FIRST_COMPLETED)
        if stopped.done():
            return
        supervisor.started.result()

        queue = RequestQueue(settings.running, settings.waiting)
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
        _register_gauges(metrics, engine, store, supervisor)
        service = FoleyService(engine, generations, uploads, metrics, settings.upload_timeout, settings.duration)
        server = _server(settings, CallInterceptor(tokens, metrics), health_service, service, Operations(generations))
        port = _listen(server, settings)
        metrics_server = MetricsServer(
            metrics,
            settings.metrics_address,
            settings.metrics_port,
            triton=lambda: next((one.metrics for one in supervisor.statuses.values()), None),
            ready=lambda: supervisor.ready and not stopped.done(),
        )
        stack.callback(metrics_server.close)
        await server.start()
        await _set_health(health_service, supervisor.ready)
        jobs = asyncio.create_task(generations.run())
        ready = f"ready grpc={settings.address}:{port} metrics={settings.metrics_address}:{metrics_server.port}"
        if settings.studio:
            ready += f" studio={await stack.enter_async_context(_studio(settings, engine, sandbox, uploads, tokens))}"
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
    settings: Settings, engine: Engine, sandbox: Sandbox, uploads: Uploads, tokens: Tokens
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
    return serve_studio(studio, settings)


def _supervisor(settings: Settings, health_service: health.aio.HealthServicer) -> TritonPool:
    loop = asyncio.get_running_loop()

    def on_change(ready: bool) -> None:
        with suppress(RuntimeError):  # the event loop is closed
            asyncio.run_coroutine_threadsafe(_set_health(health_service, ready), loop)

    if settings.triton:
        return TritonPool([settings.triton], on_change, settings.hang_timeout)
    bundle = bundles.read(settings.bundle)
    bundles.verify(bundle)
    embedded = EmbeddedTriton("embedded", settings.models, bundle, str(settings.trace) if settings.trace else None)
    return TritonPool(embedded, on_change, settings.hang_timeout)


async def _set_health(service: health.aio.HealthServicer, ready: bool) -> None:
    status = health_pb2.HealthCheckResponse.SERVING if ready else health_pb2.HealthCheckResponse.NOT_SERVING
    for name in ("", *SERVICES):
        await service.set(name, status)


def _server(
    settings: Settings,
    interceptor: CallInterceptor,
    health_service: health.aio.HealthServicer,
    service: FoleyService,
    operations: Operations,
) -> grpc.aio.Server:
    server = grpc.aio.server(
        interceptors=[interceptor],
        options=[
            ("grpc.max_receive_message_length", MAX_MESSAGE),
            ("grpc.max_metadata_size", 16 * 1024),
            ("grpc.max_concurrent_streams", 1_000),
            ("grpc.max_allowed_incoming_connections", _connection_limit()),
            *KEEPALIVE,
            ("grpc.http2.min_ping_interval_without_data_ms", MIN_PING_INTERVAL_MS),
            ("grpc.so_reuseport", 0),  # fail if another server uses the port
        ],
    )
    foley_pb2_grpc.add_FoleyServiceServicer_to_server(service, server)
    operations_pb2_grpc.add_OperationsServicer_to_server(operations, server)
    health_pb2_grpc.add_HealthServicer_to_server(health_service, server)
    reflection.enable_server_reflection((*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    return server


def _connection_limit() -> int:
    """Raise the soft limit of open files, and return the maximum number of connections.

    Half of the descriptors are left for everything else. The soft limit is raised to `MAX_OPEN_FILES` at most: some
    container runtimes set a hard limit of a billion or none, for which programs may allocate or loop.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    return min(MAX_CONNECTIONS, allowed // 2)


def _listen(server: grpc.aio.Server, settings: Settings) -> int:
    address = f"[{settings.address}]" if ":" in settings.address else settings.address
    endpoint = f"{address}:{settings.port}"
    try:
        if settings.tls_certificate and settings.tls_key:
            credentials = grpc.ssl_server_credentials(
                [(settings.tls_key.read_bytes(), settings.tls_certificate.read_bytes())],
                settings.tls_client_ca.read_bytes() if settings.tls_client_ca else None,
                require_client_auth=settings.tls_client_ca is not None,
            )
            port = server.add_secure_port(endpoint, credentials)
        else:
            port = server.add_insecure_port(endpoint)
    except OSError as error:
        raise SettingError(f"a certificate or key cannot be read ({error.strerror}); check the paths") from error
    except RuntimeError as error:
        raise OutputError(
            f"cannot listen on {endpoint}; choose another address or port, or other certificates"
        ) from error
    if not port:
        raise OutputError(f"cannot listen on {endpoint}; choose another address or port, or other certificates")
    return int(port)


def _register_gauges(metrics: Metrics, engine: Engine, store: Store, supervisor: TritonPool) -> None:
    """Register gauges that are evaluated at each scrape."""
    metrics.gauge("triton_ready", "Whether Triton is ready.", lambda: float(supervisor.ready))
    metrics.gauge(
        "triton_starts",
        "Starts of Triton, or connections to it.",
        lambda: sum(one.starts for one in supervisor.statuses.values()),
    )
    metrics.gauge("admitted", "Admitted requests.", lambda: engine.queue.admitted)
    metrics.gauge("waiting", "Admitted requests and generations that wait for a slot.", lambda: engine.queue.waiting)
    metrics.gauge("stored_waiting", "Queued long-running generations.", lambda: store.count("queued"))
    metrics.gauge("stored_running", "Long-running generations in progress.", lambda: store.count("running"))


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
