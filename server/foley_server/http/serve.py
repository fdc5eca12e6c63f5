"""Serves the studio on a separate port, in the event loop of the API."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Generator
from contextlib import asynccontextmanager, contextmanager

import uvicorn

from foley.errors import OutputError
from foley_server.api.settings import Settings
from foley_server.http.app import Studio

STOP_TIMEOUT_S = 5
MAX_CONNECTIONS = 1_000  # uvicorn responds with 503 beyond this


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leave signal handling to the API, which shuts down gracefully."""
        yield


@asynccontextmanager
async def serve_studio(studio: Studio, settings: Settings) -> AsyncIterator[str]:
    """Serve the studio while the context is active.

    Yields:
        The URL of the studio.

    Raises:
        OutputError: The port is in use.
    """
    address, port = settings.studio_address, settings.studio_port
    try:
        listener = socket.create_server((address, port))
    except OSError as error:
        raise OutputError(
            f"cannot listen on {address}:{port} ({error.strerror}); choose another address or port"
        ) from error
    port = listener.getsockname()[1]
    hosts = frozenset({"localhost", "127.0.0.1", "[::1]", address, *settings.studio_host})
    server = _Server(
        uvicorn.Config(
            studio.app(hosts),
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="off",
            ssl_certfile=settings.tls_certificate,
            ssl_keyfile=settings.tls_key,
            ssl_ca_certs=str(settings.tls_client_ca) if settings.tls_client_ca else None,
            ssl_cert_reqs=ssl.CERT_REQUIRED if settings.tls_client_ca else ssl.CERT_NONE,
            limit_concurrency=MAX_CONNECTIONS,
            timeout_graceful_shutdown=STOP_TIMEOUT_S,
        )
    )
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield f"{'https' if settings.tls_certificate else 'http'}://{address}:{port}/"
    finally:
        server.should_exit = True
        await asyncio.wait([task])
        listener.close()
