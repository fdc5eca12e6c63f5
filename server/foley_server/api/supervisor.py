"""Keeps a Triton there: starts one and starts it again when it dies, or joins one and joins it again."""

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
from foley_pipeline.triton import Triton
from foley_server import triton as embedded

LOOK_S = 0.2  # between two looks at the processes of an embedded Triton
ASK_S = 5.0  # between two questions whether it is ready
UNANSWERED = 3  # of these in a row, and it hangs
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0  # before it is started again
STABLE_S = 20.0  # who has lived so long begins with the first pause again

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Served:
    """A Triton that is there.

    Attributes:
        metrics: where its metrics are.
        alive: whether all of its processes live.
        kill: end it at once, where it is ours; requests to it fail.
    """

    client: Triton
    metrics: str | None
    alive: Callable[[], bool]
    kill: Callable[[], None]


@dataclass(frozen=True)
class Embedded:
    """A Triton of our own."""

    models: Path
    bundle: Bundle
    trace: str | None  # OTLP/HTTP endpoint for its spans

    @contextmanager
    def serve(self) -> Iterator[Served]:
        """Start it."""
        with (
            embedded.serve(self.models, self.bundle, trace=self.trace) as server,
            Triton(server.endpoints.grpc) as client,
        ):

            def alive() -> bool:
                if failure := server.failure():
                    log.error("%s", failure[:700])
                return failure is None

            yield Served(client, f"http://{server.endpoints.metrics}/metrics", alive, server.process.kill)


@dataclass(frozen=True)
class Joined:
    """A Triton that somebody else runs."""

    url: str
    metrics: str | None

    @contextmanager
    def serve(self) -> Iterator[Served]:
        """Connect to it."""
        with Triton(self.url) as client:
            yield Served(client, self.metrics, lambda: True, lambda: None)


class Supervisor:
    """One Triton in the background, from `start` to `stop`.

    Args:
        on_change: told, from another thread, when it has come or gone.
        hang_timeout_s: seconds without an answer from a model that has calls, after which Triton is restarted.
    """

    def __init__(
        self, source: Embedded | Joined, on_change: Callable[[bool], None], hang_timeout_s: float = 300.0
    ) -> None:
        self._source = source
        self._hang_timeout_s = hang_timeout_s
        self._on_change = on_change
        self._stopping = threading.Event()
        self._started = threading.Event()
        self._failure: Exception | None = None
        self._triton: Triton | None = None
        self._pause_s = FIRST_PAUSE_S
        self.metrics_url: str | None = None
        self.starts = 0
        # one thread for all of its life: an embedded Triton ends with the thread that has started it
        self._thread = threading.Thread(target=self._run, name="triton", daemon=True)

    def start(self) -> None:
        """Return when Triton is ready for the first time.

        Raises:
            FoleyError: what keeps it from starting.
        """
        self._thread.start()
        self._started.wait()
        if self._failure:
            raise self._failure

    def stop(self) -> None:
        """End it, or leave it."""
        self._stopping.set()
        self._thread.join()

    @property
    def ready(self) -> bool:
        """Whether it is there."""
        return self._triton is not None

    def triton(self) -> Triton:
        """It. Raises ServerUnavailable while it is not there."""
        found = self._triton
        if found is None:
            error = ServerUnavailable("the networks are being started again; try again in a moment")
            error.retry_after_s = max(2.0, self._pause_s)
            raise error
        return found

    def _run(self) -> None:
        while not self._stopping.is_set():
            began = time.monotonic()
            try:
                with self._source.serve() as served:
                    self.starts += 1
                    self._change(served)
                    log.info("Triton is ready")
                    self._watch(served)
                    self._change(None)
                    if not self._stopping.is_set():
                        served.kill()
            except Exception as error:  # also what nobody foresaw: this thread must not end, nor `start` wait for ever
                self._change(None)
                if not self._started.is_set():
                    self._failure = _told(error)
                    self._started.set()
                    return
                log.error("Triton did not start: %s", error, exc_info=not isinstance(error, FoleyError | OSError))
            if time.monotonic() - began > STABLE_S:
                self._pause_s = FIRST_PAUSE_S
            self._stopping.wait(self._pause_s)
            self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)

    def _watch(self, served: Served) -> None:
        """Return when it has died, hangs, or is to stop."""
        unanswered, asked = 0, time.monotonic()
        while not self._stopping.wait(LOOK_S) and served.alive():
            if time.monotonic() - asked < ASK_S:
                continue
            unanswered = 0 if served.client.ready() else unanswered + 1
            asked = time.monotonic()
            if unanswered >= UNANSWERED:
                log.error("Triton does not answer")
                return
            if (silence_s := served.client.silence_s()) > self._hang_timeout_s:
                log.error("a model has answered no call for %.0f s; Triton is restarted", silence_s)
                return

    def _change(self, served: Served | None) -> None:
        self._triton, self.metrics_url = (served.client, served.metrics) if served else (None, None)
        self._on_change(served is not None)
        if served:
            self._started.set()


def _told(error: Exception) -> Exception:
    """`error` as one sentence where the machine is to blame."""
    if isinstance(error, OSError):
        return ServerUnavailable(f"Triton cannot be started ({error}); check the free space in {gettempdir()}")
    return error
