"""Serves the studio on a separate port, in the event loop of the API."""

import asyncio
import socket
from collections.abc import AsyncIterator, Generator
from contextlib import asynccontextmanager, contextmanager

import uvicorn

from foley.errors import OutputError
from foley_server.api.certificates import Certificates
from foley_server.api.settings import Settings
from foley_server.http.app import Studio
from foley_server.http.connection import MAX_CONNECTIONS, Connection

STOP_TIMEOUT_S = 5


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leave signal handling to the API, which shuts down gracefully."""
        yield


@asynccontextmanager
async def serve_studio(studio: Studio, settings: Settings, certificates: Certificates | None) -> AsyncIterator[str]:
    """Serve the studio while the context is active, with TLS if there are certificates.

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
    config = uvicorn.Config(
        studio.app(hosts),
        http=Connection,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        limit_concurrency=MAX_CONNECTIONS + 1,  # `Connection` makes room below that
        timeout_graceful_shutdown=STOP_TIMEOUT_S,
    )
    config.load()
    config.ssl = certificates.ssl_context() if certificates else None
    server = _Server(config)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield f"{'https' if certificates else 'http'}://{address}:{port}/"
    finally:
        server.should_exit = True
        await asyncio.wait([task])
        listener.close()
