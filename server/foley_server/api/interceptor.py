"""Interceptor of all gRPC calls: authentication, authorisation, rate limits, error statuses and telemetry."""

import asyncio
import inspect
import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import status_pb2

from foley.errors import Cancelled, FoleyError, InvalidInput, ServerFailure, TimedOut
from foley_pipeline.api import foley_pb2 as pb
from foley_pipeline.api.status import to_status
from foley_server.api.tokens import Principal, Scope, Tokens
from foley_server.jobs.upload import FIRST_MESSAGE_TIMEOUT_S
from foley_server.telemetry import logs
from foley_server.telemetry.metrics import Metrics
from foley_server.telemetry.tracing import call_span

log = logging.getLogger(__name__)

PUBLIC_METHODS = ("/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch")  # need no token
MAX_HEALTH_WATCHES = 500  # they need no token and last
_FOLEY = pb.DESCRIPTOR.services_by_name["FoleyService"].full_name
METHOD_SCOPES: Mapping[str, Scope] = {
    **dict.fromkeys(
        (f"/{_FOLEY}/{name}" for name in ("Generate", "PredictEnvelope", "EmbedPrompt", "CreateGeneration")), "generate"
    ),
    f"/{_FOLEY}/WatchGeneration": "read",
    **dict.fromkeys(
        (f"/google.longrunning.Operations/{name}" for name in ("ListOperations", "GetOperation", "WaitOperation")),
        "read",
    ),
    **dict.fromkeys(
        (f"/google.longrunning.Operations/{name}" for name in ("CancelOperation", "DeleteOperation")), "generate"
    ),
}
"""Scope that each method requires. Methods that are not listed, such as reflection, accept any valid token."""

caller: ContextVar[Principal] = ContextVar("caller")


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Adds tokens, rate limits, request ids, error statuses, metrics, logs and traces to all services of a server."""

    def __init__(self, tokens: Tokens, metrics: Metrics) -> None:
        self._tokens = tokens
        self._metrics = metrics
        self._health_watches = 0

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], details: grpc.HandlerCallDetails
    ) -> Any:
        """Return a handler that checks the call and then runs it, or that rejects it."""
        handler = await continuation(details)
        if details.method in PUBLIC_METHODS:
            return self._bounded(handler) if handler.response_streaming else handler
        metadata = {key: value for key, value in details.invocation_metadata if isinstance(value, str)}
        method = details.method if handler else "unknown"  # a label value per invented method name would be unbounded
        try:
            principal = self._tokens.principal(metadata.get("authorization"))
            principal.check(METHOD_SCOPES.get(details.method))
        except FoleyError as error:
            rejection = error

            async def reject(request: Any, context: Any) -> None:
                async with self._observe(method, metadata, context):
                    raise rejection

            return grpc.stream_stream_rpc_method_handler(reject)
        if handler is None:
            return None  # gRPC responds with UNIMPLEMENTED
        behavior = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream

        async def call(serialized: AsyncIterator[bytes], context: Any) -> Any:
            async with self._observe(method, metadata, context):
                with principal.acquire():
                    caller.set(principal)
                    messages = _deserialized(serialized, handler.request_deserializer)
                    request = messages if handler.request_streaming else await _single(messages)
                    if inspect.isasyncgenfunction(behavior):
                        async for response in behavior(request, context):
                            await context.write(response)
                        return None
                    return await behavior(request, context)

        # Requests are received as a stream of bytes and parsed here. If gRPC parses them, an invalid message causes a
        # traceback in the log and the status UNKNOWN, and a unary call without a message never gets a response.
        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(call, None, handler.response_serializer)
        return grpc.stream_unary_rpc_method_handler(call, None, handler.response_serializer)

    def _bounded(self, handler: Any) -> Any:
        """Return a handler of Health/Watch that refuses calls beyond `MAX_HEALTH_WATCHES`."""

        async def watch(request: Any, context: Any) -> None:
            if self._health_watches >= MAX_HEALTH_WATCHES:
                await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many health watches; use Check")
            self._health_watches += 1
            try:
                await handler.unary_stream(request, context)
            finally:
                self._health_watches -= 1

        return grpc.unary_stream_rpc_method_handler(watch, handler.request_deserializer, handler.response_serializer)

    @asynccontextmanager
    async def _observe(self, method: str, metadata: dict[str, str], context: Any) -> AsyncIterator[None]:
        """Count, log and trace a call; convert its error to a status."""
        id = uuid.uuid4().hex
        logs.request_id.set(id)
        started_at = time.monotonic()
        status: status_pb2.Status | None = None
        code = "OK"
        await context.send_initial_metadata((("x-request-id", id),))
        with self._metrics.active.labels(method).track_inprogress(), call_span(method, id, metadata) as span:
            try:
                yield
            except FoleyError as error:
                status, code = to_status(error, id), error.grpc_status
            except asyncio.CancelledError:
                code = Cancelled.grpc_status
                raise
            except grpc.aio.AbortError:
                code = "ABORTED"
                raise
            except grpc.aio.BaseError as error:  # the client has disconnected
                code = Cancelled.grpc_status
                raise asyncio.CancelledError from error
            except Exception:
                log.exception("internal error in %s", method)
                internal = ServerFailure(f"internal error; report the request id {id} to the server's operator")
                status, code = to_status(internal, id), internal.grpc_status
            finally:
                seconds = time.monotonic() - started_at
                span.set_attribute("rpc.grpc.status", code)
                self._metrics.requests.labels(method, code).inc()
                self._metrics.request_seconds.labels(method).observe(seconds)
                log.info("%s %s", method, code, extra={"method": method, "code": code, "seconds": round(seconds, 3)})
        if status:
            details = (("grpc-status-details-bin", status.SerializeToString()),)
            await context.abort(getattr(grpc.StatusCode, code), status.message, details)


async def _deserialized(serialized: AsyncIterator[bytes], deserialize: Callable[[bytes], Any]) -> AsyncIterator[Any]:
    async for data in serialized:
        try:
            yield deserialize(data)
        except DecodeError as error:
            raise InvalidInput("the message cannot be parsed; see the definition of the method") from error


async def _single(messages: AsyncIterator[Any]) -> Any:
    try:
        message = await asyncio.wait_for(anext(aiter(messages), None), FIRST_MESSAGE_TIMEOUT_S)
    except asyncio.TimeoutError as error:
        raise TimedOut(f"no message arrived within {FIRST_MESSAGE_TIMEOUT_S:g} s; send it at once") from error
    if message is not None:
        return message
    raise InvalidInput("the request message is missing; send one")
