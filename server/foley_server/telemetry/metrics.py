"""Prometheus metrics of the API, and an HTTP endpoint that exposes them together with Triton's."""

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.error import URLError
from urllib.request import urlopen

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from foley.errors import OutputError

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000, 2500)
TRITON_TIMEOUT_S = 5.0


class Metrics:
    """The metrics of the API, prefixed `foley_api_`. Triton's metrics keep their prefix, `nv_`."""

    def __init__(self) -> None:
        disable_created_metrics()
        self.registry = CollectorRegistry()
        self.requests = Counter("foley_api_requests", "Completed calls.", ["method", "code"], registry=self.registry)
        self.request_seconds = Histogram(
            "foley_api_request_seconds", "Seconds per call.", ["method"], buckets=_SECONDS, registry=self.registry
        )
        self.active = Gauge("foley_api_active_requests", "Calls in progress.", ["method"], registry=self.registry)
        self.upload_bytes = Counter("foley_api_upload_bytes", "Bytes of uploaded media.", registry=self.registry)
        self._stages = Histogram(
            "foley_api_stage_seconds",
            "Seconds per pipeline stage.",
            ["stage"],
            buckets=_SECONDS,
            registry=self.registry,
        )

    def gauge(self, name: str, help_text: str, value: Callable[[], float]) -> None:
        """Add a gauge `foley_api_NAME` that calls `value` at each scrape."""
        Gauge(f"foley_api_{name}", help_text, registry=self.registry).set_function(value)

    def stage(self, stage: str, seconds: float) -> None:
        """Observe the duration of a pipeline stage."""
        self._stages.labels(stage).observe(seconds)


class MetricsServer:
    """HTTP server for `GET /metrics`, and for `GET /ready`, a readiness probe that returns 200 or 503.

    Args:
        metrics: The metrics to expose.
        address: Address to listen on.
        port: Port to listen on; 0 picks a free one.
        triton: Returns the current URL of Triton's metrics, or None.
        ready: Returns whether the API accepts calls.

    Raises:
        OutputError: The port is in use.
    """

    def __init__(
        self, metrics: Metrics, address: str, port: int, triton: Callable[[], str | None], ready: Callable[[], bool]
    ) -> None:
        class Handler(BaseHTTPRequestHandler):
            timeout = 10

            def do_GET(self) -> None:
                match self.path.split("?")[0]:
                    case "/metrics":
                        self._respond(200, generate_latest(metrics.registry) + _triton_metrics(triton()))
                    case "/ready":
                        self._respond(*((200, b"ready\n") if ready() else (503, b"not ready\n")))
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
            self._server = ThreadingHTTPServer((address, port), Handler)
        except OSError as error:
            raise OutputError(
                f"cannot serve metrics on {address}:{port} ({error.strerror}); choose another port"
            ) from error
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """Port that the server listens on."""
        return int(self._server.server_address[1])

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()


def _triton_metrics(url: str | None) -> bytes:
    if url is None:
        return b""
    try:
        with urlopen(url, timeout=TRITON_TIMEOUT_S) as response:
            return bytes(response.read())
    except (URLError, OSError):
        return b""  # the gauge `foley_api_triton_ready` shows the reason
