"""HTTP connections of the studio: silent ones are closed, in time or to make room for others."""

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_CONNECTIONS = 1_000
SILENCE_S = 30.0  # for the client to send the rest of its request, or to read its response


class Connection(H11Protocol):
    """A connection that waits for its client no longer than `SILENCE_S`.

    Beyond `MAX_CONNECTIONS`, a new one replaces the connection that has waited longest for its client, so that clients
    that send or read nothing do not keep others out. If none waits for its client, the response is 503.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._heard_at = 0.0
        self._check: asyncio.TimerHandle | None = None

    @property
    def silence_s(self) -> float:
        """Seconds for which the connection has waited for its client; 0 while the server works."""
        is_between_requests = self.cycle is None or self.cycle.response_complete
        is_receiving = not is_between_requests and self.cycle.more_body and not self.flow.read_paused
        is_waiting = is_between_requests or is_receiving or self.flow.write_paused
        return self.loop.time() - self._heard_at if is_waiting else 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Handle a new connection."""
        self._make_room()
        super().connection_made(transport)
        self._heard_at = self.loop.time()
        self._close_when_silent()

    def connection_lost(self, exc: Exception | None) -> None:
        """Handle the end of the connection."""
        if self._check:
            self._check.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Handle data of the client."""
        self._heard_at = self.loop.time()
        super().data_received(data)

    def pause_writing(self) -> None:
        """Handle that the client reads more slowly than the response is written."""
        self._heard_at = self.loop.time()
        super().pause_writing()

    def on_response_complete(self) -> None:
        """Handle the end of a response."""
        self._heard_at = self.loop.time()
        super().on_response_complete()

    def _make_room(self) -> None:
        if len(self.connections) < MAX_CONNECTIONS:
            return
        silent = max((one for one in self.connections if isinstance(one, Connection)), key=lambda one: one.silence_s)
        if silent.silence_s:
            self.connections.discard(silent)
            silent.transport.abort()

    def _close_when_silent(self) -> None:
        left_s = SILENCE_S - self.silence_s
        if left_s <= 0:
            self.transport.abort()
        else:
            self._check = self.loop.call_later(left_s, self._close_when_silent)
