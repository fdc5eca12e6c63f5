"""HTTP endpoint for monitoring: metrics, and the probes of orchestrators."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from http.client import HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.request import urlopen

from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from foley.errors import OutputError
from foley_server.telemetry.metrics import Metrics

TRITON_TIMEOUT_S = 1.0  # a scrape waits no longer for Triton's metrics
LIVE_TIMEOUT_S = 3.0  # for the event loop to respond


class MetricsServer:
    """HTTP server, in threads of its own, that is started before everything else.

    - `GET /live`: 200 if the event loop responds within 3 s, otherwise 503: the process must be restarted.
    - `GET /ready`: 200 if the server takes work, otherwise 503.
    - `GET /metrics`: the metrics of the API, and those of Triton if it responds within 1 s.

    None of them waits for Triton, the database or the media storage.

    Args:
        metrics: The metrics to expose.
        address: Address to listen on.
        port: Port to listen on; 0 picks a free one.
        loop: The event loop of the API.

    Attributes:
        ready: Returns whether the API takes work. Called from other threads; must return at once.
        triton: Returns the current URL of Triton's metrics, or None. Called likewise.

    Raises:
        OutputError: The port is in use.
    """

    def __init__(self, metrics: Metrics, address: str, port: int, loop: asyncio.AbstractEventLoop) -> None:
        self.ready: Callable[[], bool] = lambda: False
        self.triton: Callable[[], str | None] = lambda: None
        self._loop = loop
        self._lock = threading.Lock()
        self._fetched: Future[bytes] | None = None
        server = self

        class Handler(BaseHTTPRequestHandler):
            timeout = 10

            def do_GET(self) -> None:
                match self.path.split("?")[0]:
                    case "/metrics":
                        self._respond(200, generate_latest(metrics.registry) + server._triton_metrics())
                    case "/live":
                        self._respond(
                            *((200, b"live\n") if server._is_live() else (503, b"the event loop is blocked\n"))
                        )
                    case "/ready":
                        self._respond(*((200, b"ready\n") if server.ready() else (503, b"not ready\n")))
                    case _:
                        self.send_error(404)

            def _respond(self, status: int, content: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", CONTENT_TYPE_PLAIN_0_0_4)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                """Do not log scrapes."""

        try:
            self._server = _Server((address, port), Handler)
        except OSError as error:
            raise OutputError(
                f"cannot serve metrics on {address}:{port} ({error.strerror}); choose another port"
            ) from error
        threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True).start()

    @property
    def port(self) -> int:
        """Port that the server listens on."""
        return int(self._server.server_address[1])

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()

    def _is_live(self) -> bool:
        responded = threading.Event()
        try:
            self._loop.call_soon_threadsafe(responded.set)
        except RuntimeError:  # the loop is closed
            return False
        return responded.wait(LIVE_TIMEOUT_S)

    def _triton_metrics(self) -> bytes:
        """Return Triton's metrics; nothing if it does not respond in time, not even to earlier scrapes."""
        url = self.triton()
        if url is None:
            return b""
        with self._lock:
            if self._fetched is None or self._fetched.done():
                self._fetched = Future()
                threading.Thread(target=_fetch, args=(url, self._fetched), daemon=True).start()
            fetched = self._fetched
        try:
            return fetched.result(TRITON_TIMEOUT_S)
        except FutureTimeoutError:
            return b""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # the default, 5, makes probes fail while other clients connect


def _fetch(url: str, fetched: "Future[bytes]") -> None:
    content = b""
    try:
        with urlopen(url, timeout=TRITON_TIMEOUT_S) as response:
            content = response.read()
    except (OSError, HTTPException):
        pass  # the gauge `foley_api_triton_available` shows the reason
    finally:
        fetched.set_result(content)
