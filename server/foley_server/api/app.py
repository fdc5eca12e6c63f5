"""The API server process: Tritons, jobs, gRPC services, health, metrics, studio and graceful shutdown."""

import asyncio
import ctypes
import faulthandler
import fcntl
import logging
import signal
import sys
import threading
import uuid
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
from foley_server.api.quotas import Quotas
from foley_server.api.service import FoleyService
from foley_server.api.settings import Settings
from foley_server.api.tokens import Tokens
from foley_server.jobs.database_threads import DatabaseThreads
from foley_server.jobs.jobs import Jobs
from foley_server.jobs.media_store import MediaStore
from foley_server.jobs.store import Store
from foley_server.jobs.upload import Uploads
from foley_server.jobs.watches import Watches
from foley_server.jobs.workers import Workers
from foley_server.launcher.pool import TritonPool
from foley_server.launcher.supervisor import EmbeddedTriton
from foley_server.sandbox.sandbox import Sandbox
from foley_server.telemetry import logs, tracing
from foley_server.telemetry.metrics import Metrics
from foley_server.telemetry.metrics_server import MetricsServer
from foley_server.telemetry.samples import FreeSpace, LoopLag, Snapshot, sampling

log = logging.getLogger(__name__)

M_ARENA_MAX = -8  # from malloc.h
CONNECT_TIMEOUT_S = 15.0  # for remote Tritons, before the server starts without them
EXIT_TIMEOUT_S = 30.0  # for an embedded Triton and threads, after the server has stopped
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
        metrics_server = MetricsServer(  # before everything that can take time
            metrics, settings.metrics_address, settings.metrics_port, asyncio.get_running_loop()
        )
        stack.callback(metrics_server.close)
        bundle = None if settings.triton else await asyncio.to_thread(_verified, settings.bundle)
        data = stack.enter_context(_data_folder(settings.data))
        uploads = Uploads(
            stack.enter_context(scratch_folder("uploads-", parent=data)),
            settings.upload_mib << 20,
            settings.reserve_mib << 20,
        )
        tokens, certificates, quotas = Tokens(settings.tokens), Certificates.of(settings), Quotas(settings)
        sandbox = Sandbox(
            settings.limits,
            settings.decoder_mib << 20,
            settings.decoder_cpu,
            settings.decoder_wall,
            settings.decoders or settings.running + 1,
            metrics.decoder,
        )
        await asyncio.to_thread(sandbox.measure, data, settings.sandbox == "strict")
        database = DatabaseThreads(metrics.database_errors.inc)
        stack.callback(database.close)
        store = await asyncio.to_thread(Store, settings.store_url)
        stack.callback(store.close)
        media = await asyncio.to_thread(MediaStore, settings.media_location, metrics.media_errors.inc)
        await media.mark(store.service_id)
        holder = await _new_holder(data, store, database)
        health_service = health.aio.HealthServicer()
        tritons = _tritons(settings, bundle, holder, health_service)
        stack.callback(tritons.stop)
        watches = Watches(store, media, database)
        workers = Workers(
            holder,
            store,
            database,
            media,
            watches,
            tritons,
            uploads,
            sandbox.loader,
            Cache(data / "results"),
            metrics,
            settings.running,
            settings.request_timeout,
            settings.keep_results,
            settings.sound,
        )
        max_calls = settings.running + settings.waiting
        jobs = Jobs(
            holder,
            store,
            database,
            media,
            watches,
            uploads,
            tritons,
            settings.keep_results,
            max_calls,
            settings.max_steps,
        )
        lag, space = LoopLag(), FreeSpace(data)
        stack.callback(space.close)
        counts = Snapshot("the store", partial(database.run, store.snapshot))
        await stack.enter_async_context(sampling(lag, counts))
        register_gauges(metrics, settings, jobs, workers, counts, lag, space, sandbox.level or "")
        tritons.start()
        if not await _started(tritons, stopped, CONNECT_TIMEOUT_S if settings.triton else None):
            return
        with suppress(ServerUnavailable):
            versions = tritons.any().versions
            metrics.build(versions["bundle"], versions["bundle_sha256"])

        service = FoleyService(jobs, quotas, metrics, settings.upload_timeout, settings.duration)
        server = grpc_server(settings, CallInterceptor(tokens, metrics), health_service, service, Operations(jobs))
        port = listen(server, settings.address, settings.port, certificates)
        metrics_server.triton = lambda: next((one.metrics for one in tritons.statuses.values() if one.metrics), None)
        await server.start()
        await _set_health(health_service, tritons.ready)
        metrics_server.ready = lambda: tritons.ready and not stopped.done()
        tasks = [asyncio.create_task(one.run()) for one in (watches, workers, jobs)]
        ready = f"ready grpc={settings.address}:{port} metrics={settings.metrics_address}:{metrics_server.port}"
        if settings.studio:
            studio = _studio(settings, jobs, quotas, sandbox, uploads, tokens, certificates)
            ready += f" studio={await stack.enter_async_context(studio)}"
        sys.stdout.write(f"{ready}\n")
        sys.stdout.flush()

        await asyncio.wait([stopped, *tasks], return_when=asyncio.FIRST_COMPLETED)
        log.info("draining")
        await health_service.enter_graceful_shutdown()
        await asyncio.gather(jobs.drain(settings.grace), workers.drain(settings.grace))
        await jobs.abort()
        for task in tasks:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        await server.stop(STOP_TIMEOUT_S)
        log.info("stopped")
        faulthandler.dump_traceback_later(EXIT_TIMEOUT_S, exit=True)  # a thread that hangs must not keep the process
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome


async def _started(tritons: TritonPool, stopped: "asyncio.Future[None]", timeout_s: float | None) -> bool:
    """Wait for the first Triton; up to `timeout_s` seconds for remote ones, which may come later.

    Returns:
        Whether to go on: False if the server was stopped.

    Raises:
        FoleyError: The embedded Triton failed to start.
    """
    started = asyncio.wrap_future(tritons.started)
    await asyncio.wait([stopped, started], timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    if stopped.done():
        started.cancel()
        return False
    if started.done():
        started.result()
    else:
        log.warning("no Triton can be reached yet; jobs are queued until one can")
    return True


async def _new_holder(data: Path, store: Store, database: DatabaseThreads) -> str:
    """Return a name for this process as a holder of leases; end the leases of its predecessor in the data folder.

    The lock of the data folder proves that the predecessor has ended, so that its jobs need not wait for their leases.
    """
    path, holder = data / "holder", uuid.uuid4().hex
    if path.exists():
        await database.run(store.release, path.read_text())
    path.write_text(holder)
    return holder


def _studio(
    settings: Settings,
    jobs: Jobs,
    quotas: Quotas,
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
        jobs,
        quotas,
        sandbox,
        StudioFiles(uploads.root / "studio"),
        {path.name: path for path in sorted(settings.studio_examples.glob("*")) if path.suffix in VIDEO_EXTENSIONS},
        tokens,
        uploads.max_bytes,
        settings.duration,
        settings.upload_timeout,
    )
    return serve_studio(studio, settings, certificates)


def _verified(folder: Path) -> bundles.Bundle:
    """Read a bundle and verify all of its files."""
    bundle = bundles.read(folder)
    bundles.verify(bundle)
    return bundle


def _tritons(
    settings: Settings, bundle: bundles.Bundle | None, name: str, health_service: health.aio.HealthServicer
) -> TritonPool:
    loop = asyncio.get_running_loop()

    def on_change(ready: bool) -> None:
        with suppress(RuntimeError):  # the event loop is closed
            asyncio.run_coroutine_threadsafe(_set_health(health_service, ready), loop)

    if bundle is None:
        return TritonPool(settings.triton, on_change, settings.hang_timeout)
    embedded = EmbeddedTriton(name, settings.models, bundle, str(settings.trace) if settings.trace else None)
    return TritonPool(embedded, on_change, settings.hang_timeout)


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
