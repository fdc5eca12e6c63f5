"""Supervises Triton: starts an embedded one and restarts it on failure, or connects to a remote one and reconnects."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import gettempdir

from foley.bundle import Bundle
from foley.errors import FoleyError, ServerUnavailable
from foley_pipeline.triton import TritonClient
from foley_server.launcher import triton as embedded

PROCESS_CHECK_S = 0.2  # interval between checks of the processes of an embedded Triton
READINESS_CHECK_S = 5.0  # interval between readiness checks
MAX_FAILED_CHECKS = 3  # consecutive failed readiness checks after which Triton counts as hanging
MIN_BACKOFF_S, MAX_BACKOFF_S = 0.5, 30.0  # back-off before a restart
STABLE_S = 20.0  # uptime after which the back-off is reset

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunningTriton:
    """A running Triton.

    Attributes:
        client: Connection to it.
        metrics: URL of its Prometheus metrics, if known.
        alive: Returns whether all of its processes are running.
        kill: Kills an embedded Triton, so that its requests fail; has no effect on a remote one.
    """

    client: TritonClient
    metrics: str | None
    alive: Callable[[], bool]
    kill: Callable[[], None]


@dataclass(frozen=True)
class EmbeddedTriton:
    """Starts an embedded Triton.

    Attributes:
        models: Folder of the hand-written models.
        bundle: The bundle to serve.
        trace: OTLP/HTTP endpoint for Triton's spans; None turns tracing off.
    """

    models: Path
    bundle: Bundle
    trace: str | None

    @contextmanager
    def serve(self) -> Iterator[RunningTriton]:
        """Start Triton; stop it on exit."""
        with (
            embedded.serve(self.models, self.bundle, trace=self.trace) as server,
            TritonClient(server.endpoints.grpc) as client,
        ):

            def alive() -> bool:
                if failure := server.failure():
                    log.error("%s", failure[:700])
                return failure is None

            yield RunningTriton(client, f"http://{server.endpoints.metrics}/metrics", alive, server.process.kill)


@dataclass(frozen=True)
class RemoteTriton:
    """Connects to a Triton that is managed elsewhere.

    Attributes:
        url: HOST:PORT of its gRPC endpoint.
        metrics: URL of its Prometheus metrics, if known.
    """

    url: str
    metrics: str | None

    @contextmanager
    def serve(self) -> Iterator[RunningTriton]:
        """Connect to Triton; disconnect on exit."""
        with TritonClient(self.url) as client:
            yield RunningTriton(client, self.metrics, lambda: True, lambda: None)


class Supervisor:
    """Keeps one Triton available, in a background thread, from `start` to `stop`.

    Args:
        source: Starts or connects to Triton.
        on_change: Called from the background thread with whether Triton is available, whenever that changes.
        hang_timeout_s: Time without a response from a model with pending calls, after which Triton is restarted.

    Attributes:
        metrics_url: URL of Triton's metrics, while it is available and the URL is known.
        starts: Number of successful starts or connections.
    """

    def __init__(
        self, source: EmbeddedTriton | RemoteTriton, on_change: Callable[[bool], None], hang_timeout_s: float = 300.0
    ) -> None:
        self._source = source
        self._hang_timeout_s = hang_timeout_s
        self._on_change = on_change
        self._stopping = threading.Event()
        self._started = threading.Event()
        self._failure: Exception | None = None
        self._triton: TritonClient | None = None
        self._backoff_s = MIN_BACKOFF_S
        self.metrics_url: str | None = None
        self.starts = 0
        # a single thread for all restarts: PR_SET_PDEATHSIG ends an embedded Triton with the thread that has started it
        self._thread = threading.Thread(target=self._run, name="triton", daemon=True)

    def start(self) -> None:
        """Start Triton, and wait until it is ready.

        Raises:
            FoleyError: The first start failed.
        """
        self._thread.start()
        self._started.wait()
        if self._failure:
            raise self._failure

    def stop(self) -> None:
        """Stop an embedded Triton, or disconnect from a remote one."""
        self._stopping.set()
        self._thread.join()

    @property
    def ready(self) -> bool:
        """Whether Triton is available."""
        return self._triton is not None

    def triton(self) -> TritonClient:
        """Return the connection to Triton.

        Raises:
            ServerUnavailable: Triton is being restarted; `retry_after_s` is set.
        """
        client = self._triton
        if client is None:
            error = ServerUnavailable("Triton is restarting; try again in a moment")
            error.retry_after_s = max(2.0, self._backoff_s)
            raise error
        return client

    def _run(self) -> None:
        while not self._stopping.is_set():
            started_at = time.monotonic()
            try:
                with self._source.serve() as running:
                    self.starts += 1
                    self._change(running)
                    log.info("Triton is ready")
                    self._watch(running)
                    self._change(None)
                    if not self._stopping.is_set():
                        running.kill()
            except Exception as error:  # any error: this thread must not end, and `start` must not block forever
                self._change(None)
                if not self._started.is_set():
                    self._failure = _readable(error)
                    self._started.set()
                    return
                log.error("Triton failed to start: %s", error, exc_info=not isinstance(error, FoleyError | OSError))
            if time.monotonic() - started_at > STABLE_S:
                self._backoff_s = MIN_BACKOFF_S
            self._stopping.wait(self._backoff_s)
            self._backoff_s = min(2 * self._backoff_s, MAX_BACKOFF_S)

    def _watch(self, running: RunningTriton) -> None:
        """Return when Triton has died or hangs, or the supervisor is stopping."""
        failed_checks, checked_at = 0, time.monotonic()
        while not self._stopping.wait(PROCESS_CHECK_S) and running.alive():
            if time.monotonic() - checked_at < READINESS_CHECK_S:
                continue
            failed_checks = 0 if running.client.ready() else failed_checks + 1
            checked_at = time.monotonic()
            if failed_checks >= MAX_FAILED_CHECKS:
                log.error("Triton failed %d readiness checks; restarting it", MAX_FAILED_CHECKS)
                return
            if (silence_s := running.client.silence_s()) > self._hang_timeout_s:
                log.error("a model has not responded for %.0f s; restarting Triton", silence_s)
                return

    def _change(self, running: RunningTriton | None) -> None:
        self._triton, self.metrics_url = (running.client, running.metrics) if running else (None, None)
        self._on_change(running is not None)
        if running:
            self._started.set()


def _readable(error: Exception) -> Exception:
    """Convert an OSError to a ServerUnavailable with a readable message."""
    if isinstance(error, OSError):
        return ServerUnavailable(f"Triton cannot be started ({error}); check the free disk space in {gettempdir()}")
    return error
