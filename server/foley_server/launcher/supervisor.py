"""Supervises one Triton: starts an embedded one and restarts it, or connects to a remote one and reconnects."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, InvalidStateError
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import gettempdir
from typing import Protocol

from foley.bundle import Bundle
from foley.errors import Cancelled, FoleyError, ServerUnavailable
from foley_pipeline.cancellation import CancelToken
from foley_pipeline.triton import TritonClient
from foley_server.launcher import canary
from foley_server.launcher import triton as embedded

CHECK_S = 0.2  # interval between checks of the processes of an embedded Triton, and of the connection
READINESS_CHECK_S = 5.0  # interval between readiness checks
MAX_FAILED_CHECKS = 3  # consecutive failed readiness checks after which Triton counts as hanging
MIN_BACKOFF_S, MAX_BACKOFF_S = 0.5, 30.0  # back-off before a restart
STABLE_S = 20.0  # uptime after which the back-off is reset
REMOTE_STOP_S = 2.0  # time for a remote Triton's thread to end; it has nothing to clean up

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunningTriton:
    """A Triton that can be reached.

    Attributes:
        client: Connection to it.
        metrics: URL of its Prometheus metrics, if known.
        failure: Returns why its processes have stopped working; None while they work.
    """

    client: TritonClient
    metrics: str | None
    failure: Callable[[], str | None]


class Source(Protocol):
    """Where a Triton comes from."""

    @property
    def name(self) -> str:
        """Name of the Triton."""

    @property
    def is_embedded(self) -> bool:
        """Whether Triton is a child of this process: its first start must succeed, and it must be stopped."""

    def serve(self, cancel: CancelToken) -> AbstractContextManager[RunningTriton]:
        """Start or connect to Triton; stop or disconnect on exit.

        Args:
            cancel: Ends the start.
        """


@dataclass(frozen=True)
class EmbeddedTriton:
    """Starts an embedded Triton.

    Attributes:
        name: Name of the Triton.
        models: Folder of the hand-written models.
        bundle: The bundle to serve.
        trace: OTLP/HTTP endpoint for Triton's spans; None turns tracing off.
    """

    name: str
    models: Path
    bundle: Bundle
    trace: str | None
    is_embedded = True

    @contextmanager
    def serve(self, cancel: CancelToken) -> Iterator[RunningTriton]:
        """See `Source.serve`. Triton is killed on an error, and on exit if calls are in progress."""
        with (
            embedded.serve(self.models, self.bundle, trace=self.trace, cancel=cancel) as server,
            TritonClient(server.endpoints.grpc) as client,
        ):
            try:
                yield RunningTriton(client, f"http://{server.endpoints.metrics}/metrics", server.failure)
            except BaseException as error:
                if not isinstance(error, Cancelled) or client.silence_s():
                    server.process.kill()  # ends its calls, for which Triton would wait
                raise


@dataclass(frozen=True)
class RemoteTriton:
    """Connects to a Triton that is managed elsewhere.

    Attributes:
        name: HOST:PORT of its gRPC endpoint.
    """

    name: str
    is_embedded = False

    @contextmanager
    def serve(self, cancel: CancelToken) -> Iterator[RunningTriton]:
        """See `Source.serve`."""
        with TritonClient(self.name) as client:
            cancel.check()
            yield RunningTriton(client, None, lambda: None)


class Supervisor:
    """Keeps one Triton available, in a background thread, from `start` to `stop`. Thread-safe.

    A Triton is available while its processes run, its connection has not been lost, its models respond, and the last
    canary step succeeded; see `canary.check`. The digest of its bundle is read on every connection.

    Args:
        source: Starts or connects to Triton.
        on_change: Called, from the background thread, whenever the Triton has become available or unavailable.
        hang_timeout_s: Time without a response from a model with pending calls, or to the canary step, after which
            Triton is restarted.

    Attributes:
        started: Done when Triton is available for the first time; cancelled by `stop`. It has the error of the first
            start of an embedded Triton, which is not repeated.
        starts: Number of successful starts or connections.
    """

    def __init__(self, source: Source, on_change: Callable[[], None], hang_timeout_s: float = 300.0) -> None:
        self._source = source
        self._hang_timeout_s = hang_timeout_s
        self._on_change = on_change
        self._cancel = CancelToken()
        self._running: RunningTriton | None = None
        self._canary_lock = threading.Lock()
        self._canary_passed_s = 0.0
        self._backoff_s = MIN_BACKOFF_S
        self.started: Future[None] = Future()
        self.starts = 0
        # a single thread for all restarts: PR_SET_PDEATHSIG ends an embedded Triton with the thread that has started it
        self._thread = threading.Thread(target=self._run, name="triton", daemon=True)

    def start(self) -> None:
        """Start Triton in the background."""
        self._thread.start()

    def cancel(self) -> None:
        """Begin to stop, also during a start."""
        self._cancel.cancel()
        self.started.cancel()

    def stop(self) -> None:
        """Stop an embedded Triton, or disconnect from a remote one, also during a start."""
        self.cancel()
        if self._thread.ident is not None:
            self._thread.join(None if self._source.is_embedded else REMOTE_STOP_S)

    @property
    def running(self) -> RunningTriton | None:
        """The Triton if it is available, else None."""
        return self._running

    def client(self) -> TritonClient:
        """Return the connection to Triton.

        Raises:
            ServerUnavailable: Triton is not available; `retry_after_s` is set.
        """
        running = self._running
        if running is None:
            error = ServerUnavailable(f"Triton {self._source.name} is not available; try again in a moment")
            error.retry_after_s = max(2.0, self._backoff_s)
            raise error
        return running.client

    def failed(self, error: Exception) -> bool:
        """Run the canary step after a request has failed, unless one has passed since the call of this method.

        Args:
            error: The error of the request.

        Returns:
            Whether Triton is broken. It is unavailable then until a restart, or a new connection, passes the canary.
        """
        failed_s = time.monotonic()
        with self._canary_lock:
            running = self._running
            if running is None:
                return True
            if self._canary_passed_s > failed_s:
                return False
            began_s = time.monotonic()
            try:
                canary.check(running.client, self._cancel, self._hang_timeout_s)
            except FoleyError as reason:
                log.error(
                    "Triton %s is broken: a request failed (%s), and so did a denoiser step: %s",
                    self.name,
                    error,
                    reason,
                )
                if self._running is running:
                    self._running = None  # the background thread notices
                return True
            self._canary_passed_s = began_s
            return False

    @property
    def name(self) -> str:
        """Name of the Triton."""
        return self._source.name

    def _run(self) -> None:
        reported = ""
        with suppress(Cancelled):
            while True:
                self._cancel.check()
                started_s = time.monotonic()
                try:
                    with self._source.serve(self._cancel) as running:
                        canary.check(running.client, self._cancel, self._hang_timeout_s)
                        reported = ""
                        self._serve(running)
                except Exception as error:  # any error: this thread must not end
                    self._cancel.check()
                    if self._source.is_embedded and not self.starts:
                        with suppress(InvalidStateError):  # stopping
                            self.started.set_exception(_readable(error))
                        return
                    if str(error) != reported:
                        expected = isinstance(error, FoleyError | OSError)
                        log.error("Triton %s is not available: %s", self.name, error, exc_info=not expected)
                        reported = str(error)
                if time.monotonic() - started_s > STABLE_S:
                    self._backoff_s = MIN_BACKOFF_S
                self._cancel.sleep(self._backoff_s)
                self._backoff_s = min(2 * self._backoff_s, MAX_BACKOFF_S)

    def _serve(self, running: RunningTriton) -> None:
        """Make Triton available until it stops working.

        Raises:
            ServerUnavailable: It has stopped working.
            Cancelled: The supervisor is stopping.
        """
        self.starts += 1
        self._running = running
        try:
            self._on_change()
            with suppress(InvalidStateError):  # a restart
                self.started.set_result(None)
            log.info("Triton %s is ready", self.name)
            self._watch(running)
        finally:
            self._running = None
            self._on_change()

    def _watch(self, running: RunningTriton) -> None:
        failed_checks, checked_s = 0, time.monotonic()
        while True:
            self._cancel.sleep(CHECK_S)
            if self._running is not running:
                raise ServerUnavailable("its canary step failed")
            if failure := running.failure():
                raise ServerUnavailable(failure[:700])
            if running.client.lost:
                raise ServerUnavailable("the connection was lost")
            if (silence_s := running.client.silence_s()) > self._hang_timeout_s:
                raise ServerUnavailable(f"a model has not responded for {silence_s:.0f} s")
            if time.monotonic() - checked_s >= READINESS_CHECK_S:
                failed_checks = 0 if running.client.ready() else failed_checks + 1
                checked_s = time.monotonic()
                if failed_checks >= MAX_FAILED_CHECKS:
                    raise ServerUnavailable(f"it failed {MAX_FAILED_CHECKS} readiness checks")


def _readable(error: Exception) -> Exception:
    """Convert an OSError to a ServerUnavailable with a readable message."""
    if isinstance(error, OSError):
        return ServerUnavailable(f"Triton cannot be started ({error}); check the free disk space in {gettempdir()}")
    return error
