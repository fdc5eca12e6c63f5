"""HTTP as the studio speaks it: who may come in, what browsers are told, errors as JSON."""

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
"""HTTP's word for a gRPC status; others are 500."""

HEADERS = {
    # the page loads what this server has, and nothing else; nobody frames it
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "media-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
    "Cache-Control": "no-store",
}


class Door:
    """Lets in requests to the names that the studio is known by, from its own page; adds `HEADERS` to answers.

    Another page's script cannot read answers, but without this it could send requests, and a name that its owner lets
    point to this machine (DNS rebinding) could read them, too.
    """

    def __init__(self, app: ASGIApp, hosts: frozenset[str]) -> None:
        self._app, self._hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
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
            refusal = Forbidden(f"this studio does not go by the name {host[:100]}; see --studio-host")
            await error_response(refusal)(scope, receive, with_headers)
        elif origin is not None and origin.partition("://")[2] != host:
            await error_response(Forbidden("requests come from the studio's own page"))(scope, receive, with_headers)
        else:
            await self._app(scope, receive, with_headers)


Answer = Callable[[Request], Awaitable[Response]]


class Guarded:
    """An endpoint for those who have a token, where there are tokens: one of their requests, to its last byte."""

    def __init__(self, tokens: Tokens, answer: Answer) -> None:
        self._tokens, self._answer = tokens, answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive, send)
        principal = self._tokens.principal(request.headers.get("authorization"))
        principal.check("generate")
        with principal.counted():
            response = await self._answer(request)
            await response(scope, receive, send)


def error_response(error: FoleyError) -> JSONResponse:
    """An error with the words and the fields of the gRPC API's."""
    status = 413 if isinstance(error, MediaTooLarge) else STATUS.get(error.grpc_status, 500)
    headers = {} if error.retry_after_s is None else {"Retry-After": str(round(error.retry_after_s))}
    return JSONResponse({"error": error_document(error)}, status, headers)


def error_document(error: FoleyError) -> dict[str, Any]:
    """What went wrong, for JSON."""
    return {
        "reason": reason(type(error)),
        "message": str(error),
        "field": error.field,
        "retry_after_s": error.retry_after_s,
    }


def told(error: BaseException) -> FoleyError:
    """What a user is told of an error; a mistake of ours is in the log."""
    if isinstance(error, FoleyError):
        return error
    log.error("a request to the studio failed", exc_info=error)
    return ServerFailure("the server made a mistake; its log says which")


def handle_errors(app: Starlette) -> None:
    """Let errors of this project be answers."""

    async def answer(_: Request, error: Exception) -> Response:
        return error_response(told(error))

    app.add_exception_handler(FoleyError, answer)
    app.add_exception_handler(Exception, answer)


async def document(request: Request, limit: int) -> dict[str, Any]:
    """The JSON object that a request brings. Raises InvalidInput where it is none, or larger than `limit` bytes."""
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > limit:
            raise InvalidInput(f"the request has more than {limit} bytes")
    try:
        found = json.loads(content)
    except ValueError as error:
        raise InvalidInput("the request is no JSON") from error
    if not isinstance(found, dict):
        raise InvalidInput("the request is no JSON object")
    return found


async def lines(events: AsyncGenerator[dict[str, Any], None]) -> StreamingResponse:
    """Events as lines of JSON; whoever goes away stops the work behind them.

    An error before the first is raised; one after it, when the status has gone out, is the last line.
    """
    first = await anext(events)

    async def content() -> AsyncIterator[bytes]:
        async with aclosing(events):
            try:
                yield _line(first)
                async for event in events:
                    yield _line(event)
            except asyncio.CancelledError:
                raise
            except Exception as error:
                yield _line({"event": "error", "error": error_document(told(error))})

    return StreamingResponse(content(), media_type="application/x-ndjson")


def _line(event: dict[str, Any]) -> bytes:
    return json.dumps(event).encode() + b"\n"
