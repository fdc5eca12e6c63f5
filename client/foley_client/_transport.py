"""gRPC calls of the public API, synchronous and for asyncio, that end when a token is cancelled."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from typing import Any, TypeVar

import grpc
from google.longrunning import operations_pb2_grpc
from grpc_health.v1 import health_pb2_grpc

from foley.errors import Cancelled
from foley_client.channel import Channel
from foley_pipeline.api import foley_pb2_grpc
from foley_pipeline.cancellation import CancelToken

Result = TypeVar("Result")
Attempt = Callable[[], Result]
AsyncAttempt = Callable[[], Awaitable[Result]]


class _Stubs:
    """The services of the API on one channel.

    Attributes:
        service: `foley.v1.FoleyService`.
        operations: `google.longrunning.Operations`.
        health: `grpc.health.v1.Health`.
    """

    def __init__(self, channel: Any, metadata: list[tuple[str, str]]) -> None:
        self._channel, self._metadata = channel, metadata
        self.service = foley_pb2_grpc.FoleyServiceStub(channel)
        self.operations = operations_pb2_grpc.OperationsStub(channel)
        self.health = health_pb2_grpc.HealthStub(channel)


class Transport(_Stubs):
    """Synchronous calls. Thread-safe."""

    def __init__(self, channel: Channel) -> None:
        super().__init__(channel.open(), channel.metadata)

    def close(self) -> None:
        """Close the connection and cancel the calls in progress."""
        self._channel.close()

    def call(self, method: Any, request: Any, timeout_s: float, cancel: CancelToken) -> Any:
        """Call a method that returns one response.

        Args:
            method: The method of a stub.
            request: The request, or an iterator of requests.
            timeout_s: Deadline of the call.
            cancel: Cancels the call.

        Raises:
            Cancelled: The call was cancelled.
            grpc.RpcError: The call failed.
        """
        call = method.future(request, timeout=timeout_s, metadata=self._metadata)
        try:
            with cancel.on_cancel(call.cancel):
                return call.result()
        except grpc.FutureCancelledError:
            pass  # raise below: the traceback of this error references the call, see `_wire.failure`
        finally:
            call.cancel()
            del call
        cancel.check()
        raise Cancelled("the connection was closed")

    def stream(self, method: Any, request: Any, timeout_s: float, cancel: CancelToken) -> Generator[Any, None, None]:
        """Call a method that returns a stream; yield its responses. Errors are those of `call`."""
        responses = method(request, timeout=timeout_s, metadata=self._metadata)
        try:
            with cancel.on_cancel(responses.cancel):
                yield from responses
        except grpc.RpcError as error:
            if not cancel.cancelled:
                raise
            error.__traceback__ = None  # raise below, without this error as context; see `_wire.failure`
        finally:
            responses.cancel()
            del responses  # so that tracebacks do not reference the call, see `_wire.failure`
        cancel.check()

    def sleep(self, seconds: float, cancel: CancelToken) -> None:
        """Sleep; raises the error of `cancel` when it is cancelled."""
        cancel.sleep(seconds)


class AsyncTransport(_Stubs):
    """Calls for asyncio, with the methods of `Transport`. Cancelling a task also cancels its call on the server."""

    def __init__(self, channel: Channel) -> None:
        super().__init__(channel.open_async(), channel.metadata)

    async def close(self) -> None:
        """See `Transport.close`."""
        await self._channel.close()

    async def call(self, method: Any, request: Any, timeout_s: float, cancel: CancelToken) -> Any:
        """See `Transport.call`."""
        cancel.check()
        return await _until_cancelled(method(request, timeout=timeout_s, metadata=self._metadata), cancel)

    async def stream(
        self, method: Any, request: Any, timeout_s: float, cancel: CancelToken
    ) -> AsyncGenerator[Any, None]:
        """See `Transport.stream`."""
        cancel.check()
        call = method(request, timeout=timeout_s, metadata=self._metadata)
        try:
            while (response := await _until_cancelled(call.read(), cancel)) is not grpc.aio.EOF:
                yield response
        finally:
            call.cancel()

    async def sleep(self, seconds: float, cancel: CancelToken) -> None:
        """See `Transport.sleep`."""
        await _until_cancelled(asyncio.sleep(seconds), cancel)


async def _until_cancelled(awaitable: Awaitable[Result], cancel: CancelToken) -> Result:
    """Await `awaitable` in a task of its own, which is cancelled with `cancel` or with the caller's task.

    grpc.aio raises asyncio.CancelledError for every call that it ends itself, for example when the upload fails or the
    channel is closed. The separate task distinguishes this from a cancellation of the caller's task.

    Raises:
        Cancelled: The awaitable was cancelled, but the caller's task was not; see `CancelToken.check`.
    """

    async def run() -> Result:
        return await awaitable

    loop = asyncio.get_running_loop()
    task = loop.create_task(run())
    try:
        with cancel.on_cancel(lambda: loop.call_soon_threadsafe(task.cancel)):
            await asyncio.wait([task])
    finally:
        task.cancel()
    if task.cancelled():
        cancel.check()
        raise Cancelled("the connection was closed")
    return task.result()
