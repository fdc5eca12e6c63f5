"""Asyncio SDK of the public API."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import grpc
from google.longrunning import operations_pb2, operations_pb2_grpc
from grpc_health.v1 import health_pb2_grpc

from foley.envelope import Floats
from foley.errors import Cancelled, SettingError
from foley.options import OpticalFlow
from foley_client.channel import Channel
from foley_client.exchange import (
    ATTEMPTS,
    CALL_TIMEOUT_S,
    GENERATE_TIMEOUT_S,
    HEALTH_CHECK,
    SERVING,
    Collector,
    Generation,
    check_file,
    check_files,
    create_messages,
    embedding,
    envelope,
    envelope_messages,
    failure,
    generate_messages,
    generation,
    new_request_id,
    page_request,
    prompt_messages,
    retry_delay_s,
)
from foley_pipeline.api import foley_pb2 as pb
from foley_pipeline.api import foley_pb2_grpc
from foley_pipeline.job import Job, Sound
from foley_pipeline.prompt import Prompt
from foley_pipeline.watch import Watch

Result = TypeVar("Result")


class AsyncFoleyClient:
    """Asyncio counterpart of `FoleyClient`, with the same arguments and methods.

    Cancelling a task also cancels its call on the server. `watch.cancel()`, which may be called from any thread,
    raises `foley.errors.Cancelled` in the task that awaits the method; the task itself is not cancelled.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        ca: Path | None = None,
        certificate: Path | None = None,
        key: Path | None = None,
        attempts: int = ATTEMPTS,
    ) -> None:
        channel = Channel(url, token, ca, certificate, key)
        self._metadata = channel.metadata
        self._attempts = attempts
        self._channel = channel.open_async()
        self._foley = foley_pb2_grpc.FoleyServiceStub(self._channel)
        self._operations = operations_pb2_grpc.OperationsStub(self._channel)
        self._health = health_pb2_grpc.HealthStub(self._channel)

    async def __aenter__(self) -> "AsyncFoleyClient":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection and cancel the calls in progress."""
        await self._channel.close()

    async def serving(self) -> bool:
        """See `FoleyClient.serving`."""
        answer = await self._call(self._health.Check, HEALTH_CHECK)
        return bool(answer.status == SERVING)

    async def generate(self, job: Job, watch: Watch | None = None) -> Sound:
        """See `FoleyClient.generate`."""
        check_files(job)
        one = watch or Watch()
        return await self._retried(lambda: self._collect(self._foley.Generate, generate_messages(job, one), one), one)

    async def predict_envelope(
        self, video: Path, flow: OpticalFlow | None = None, watch: Watch | None = None
    ) -> Floats:
        """See `FoleyClient.predict_envelope`."""
        check_file(video)
        one = watch or Watch()

        async def call() -> Floats:
            answer = await self._foley.PredictEnvelope(
                envelope_messages(video, flow, one), timeout=GENERATE_TIMEOUT_S, metadata=self._metadata
            )
            return envelope(answer)

        return await self._retried(call, one)

    async def embed(self, prompt: Prompt, watch: Watch | None = None) -> tuple[Floats, Floats]:
        """See `FoleyClient.embed`."""
        if prompt.audio:
            check_file(prompt.audio)
        one = watch or Watch()

        async def call() -> tuple[Floats, Floats]:
            answer = await self._foley.EmbedPrompt(
                prompt_messages(prompt, one), timeout=GENERATE_TIMEOUT_S, metadata=self._metadata
            )
            return embedding(answer.embedding), embedding(answer.negative_embedding)

        return await self._retried(call, one)

    async def create(self, job: Job, request_id: str | None = None, watch: Watch | None = None) -> str:
        """See `FoleyClient.create`."""
        check_files(job)
        one, chosen = watch or Watch(), request_id or new_request_id()

        async def call() -> operations_pb2.Operation:
            return await self._foley.CreateGeneration(
                create_messages(job, chosen, one), timeout=GENERATE_TIMEOUT_S, metadata=self._metadata
            )

        return str((await self._retried(call, one, idempotent=True)).name)

    async def result(self, name: str, watch: Watch | None = None) -> Sound:
        """See `FoleyClient.result`."""
        one, request = watch or Watch(), pb.WatchGenerationRequest(name=name)
        return await self._retried(
            lambda: self._collect(self._foley.WatchGeneration, request, one), one, idempotent=True
        )

    async def status(self, name: str) -> Generation:
        """See `FoleyClient.status`."""
        request = operations_pb2.GetOperationRequest(name=name)
        return generation(await self._call(self._operations.GetOperation, request, idempotent=True))

    async def generations(self) -> AsyncIterator[Generation]:
        """See `FoleyClient.generations`."""
        token = ""
        while True:
            page = await self._call(self._operations.ListOperations, page_request(token), idempotent=True)
            for operation in page.operations:
                yield generation(operation)
            if not (token := page.next_page_token):
                return

    async def cancel(self, name: str) -> None:
        """See `FoleyClient.cancel`."""
        await self._call(self._operations.CancelOperation, operations_pb2.CancelOperationRequest(name=name))

    async def delete(self, name: str) -> None:
        """See `FoleyClient.delete`."""
        await self._call(self._operations.DeleteOperation, operations_pb2.DeleteOperationRequest(name=name))

    async def _call(
        self, method: Callable[..., Awaitable[Result]], request: object, idempotent: bool = False
    ) -> Result:
        async def call() -> Result:
            return await method(request, timeout=CALL_TIMEOUT_S, metadata=self._metadata)

        return await self._retried(call, idempotent=idempotent)

    async def _collect(self, method: Callable[..., grpc.aio.UnaryStreamCall], request: object, watch: Watch) -> Sound:
        events = method(request, timeout=GENERATE_TIMEOUT_S, metadata=self._metadata)
        collector = Collector(watch)
        try:
            async for event in events:
                collector.add(event)
        finally:
            events.cancel()
            collector.close()
        return collector.sound()

    async def _retried(
        self, call: Callable[[], Awaitable[Result]], watch: Watch | None = None, idempotent: bool = False
    ) -> Result:
        """Return the result of `call`; retry it as `retry_delay_s` says."""
        one = watch or Watch()

        async def attempts() -> Result:
            for attempt in range(1, self._attempts + 1):
                try:
                    return await call()
                except grpc.RpcError as error:
                    failed = failure(error)
                one.check()  # raises Cancelled if the watch ended the call
                await asyncio.sleep(retry_delay_s(failed, attempt, self._attempts, idempotent))
            raise SettingError(f"attempts is {self._attempts}; give 1 or more")

        return await _until_cancelled(attempts(), one)


async def _until_cancelled(work: Coroutine[Any, Any, Result], watch: Watch) -> Result:
    """Return the result of `work`; cancel `work` when `watch` or the caller's task is cancelled.

    grpc.aio raises asyncio.CancelledError for every call that it ends itself, for example when the upload fails or
    the channel is closed. Running `work` in a separate task distinguishes this from cancellation of the caller's task.

    Raises:
        Cancelled: `work` was cancelled, but the caller's task was not.
    """
    loop = asyncio.get_running_loop()
    task = loop.create_task(work)
    try:
        with watch.cancelling(lambda: loop.call_soon_threadsafe(task.cancel)):
            await asyncio.wait([task])
    finally:
        task.cancel()
    if task.cancelled():
        raise Cancelled("stopped")
    return task.result()
