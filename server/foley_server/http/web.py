"""HTTP layer of the studio: access control, security headers, errors as JSON, event streams."""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from foley.errors import FoleyError, Forbidden, InvalidInput, MediaTooLarge, ServerFailure
from foley_pipeline.api.status import reason
from foley_server.api.tokens import Tokens

log = logging.getLogger(__name__)

STATUS: Mapping[str, int] = {
    "INVALID_ARGUMENT": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "FAILED_PRECONDITION": 409,
    "RESOURCE_EXHAUSTED": 429,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}
"""HTTP status for each gRPC status; 500 for others."""

HEADERS = {
    # the page loads resources only from this server, and must not be framed
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "media-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
    "Cache-Control": "no-store",
}


class HostCheckMiddleware:
    """ASGI middleware that rejects requests with another Host or Origin, and adds `HEADERS` to responses.

    The same-origin policy only keeps scripts of other sites from reading responses: without these checks they could
    still send requests (CSRF), and read the responses with a host name that resolves to this machine (DNS rebinding).

    Args:
        app: The application.
        hosts: Accepted values of the Host header, without the port.
    """

    def __init__(self, app: ASGIApp, hosts: frozenset[str]) -> None:
        self._app, self._hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle an ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        if host.rpartition(":")[0] not in self._hosts and host not in self._hosts:
            rejection = Forbidden(f"the host name {host[:100]} is not allowed; add it with --studio-host")
            await error_response(rejection)(scope, receive, with_headers)
        elif origin is not None and origin.partition("://")[2] != host:
            await error_response(Forbidden("cross-origin requests are not allowed; use the studio's own page"))(
                scope, receive, with_headers
            )
        else:
            await self._app(scope, receive, with_headers)


PRINCIPAL = "foley.principal"  # key of the caller in the scope of a request
Handler = Callable[[Request], Awaitable[Response]]


class AuthenticatedEndpoint:
    """ASGI endpoint that requires a token with the scope `generate`, unless the API has no tokens.

    It counts as one request of the token until the last byte of the response is sent.
    """

    def __init__(self, tokens: Tokens, handler: Handler) -> None:
        self._tokens, self._handler = tokens, handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle an ASGI connection."""
        request = Request(scope, receive, send)
        principal = self._tokens.principal(request.headers.get("authorization"))
        principal.check("generate")
        scope[PRINCIPAL] = principal
        with principal.acquire():
            response = await self._handler(request)
            await response(scope, receive, send)


def error_response(error: FoleyError) -> JSONResponse:
    """Return an error as JSON, with the same reason, message and field as in the gRPC API."""
    status = 413 if isinstance(error, MediaTooLarge) else STATUS.get(error.grpc_status, 500)
    headers = {} if error.retry_after_s is None else {"Retry-After": str(round(error.retry_after_s))}
    return JSONResponse({"error": error_document(error)}, status, headers)


def error_document(error: FoleyError) -> dict[str, Any]:
    """Return the JSON object of an error."""
    return {
        "reason": reason(type(error)),
        "message": str(error),
        "field": error.field,
        "retry_after_s": error.retry_after_s,
    }


def to_foley_error(error: BaseException) -> FoleyError:
    """Return the error to report to the user; an unexpected error is logged and becomes a ServerFailure."""
    if isinstance(error, FoleyError):
        return error
    log.error("internal error in a request to the studio", exc_info=error)
    return ServerFailure("internal error; see the server's log")


def handle_errors(app: Starlette) -> None:
    """Register handlers that convert errors to JSON responses."""

    async def handler(_: Request, error: Exception) -> Response:
        return error_response(to_foley_error(error))

    app.add_exception_handler(FoleyError, handler)
    app.add_exception_handler(Exception, handler)


async def read_json(request: Request, limit: int) -> dict[str, Any]:
    """Return the JSON object in the body of a request.

    Raises:
        InvalidInput: The body is not a JSON object, or is larger than `limit` bytes.
    """
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > limit:
            raise InvalidInput(f"the request body is larger than {limit} bytes, the limit; send less")
    try:
        body = json.loads(data)
    except ValueError as error:
        raise InvalidInput("the request body is not JSON; send a JSON object") from error
    if not isinstance(body, dict):
        raise InvalidInput("the request body is not a JSON object; send one")
    return body


async def stream_events(events: AsyncGenerator[dict[str, Any], None]) -> StreamingResponse:
    """Stream events as lines of JSON. When the client disconnects, the generator is closed, which cancels the work.

    An error before the first event is raised. A later error becomes the last line, since the status has been sent.
    """
    first = await anext(events)

    async def content() -> AsyncIterator[bytes]:
        async with aclosing(events):
            try:
                yield _json_line(first)
                async for event in events:
                    yield _json_line(event)
            except asyncio.CancelledError:
                raise
            except Exception as error:
                yield _json_line({"event": "error", "error": error_document(to_foley_error(error))})

    return StreamingResponse(content(), media_type="application/x-ndjson")


def _json_line(event: dict[str, Any]) -> bytes:
    return json.dumps(event).encode() + b"\n"
