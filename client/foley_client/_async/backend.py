"""Runs the pipeline on a public API."""

import logging
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import grpc
from google.longrunning import operations_pb2

from foley.envelope import Floats
from foley.errors import SettingError
from foley.options import OpticalFlow
from foley_client import _wire
from foley_client._transport import AsyncAttempt, AsyncTransport
from foley_client._wire import CALL_TIMEOUT_S, GENERATE_TIMEOUT_S, AsyncEvents, AsyncStatuses, EventDecoder, JobStatus
from foley_client.channel import Channel
from foley_pipeline.api import foley_pb2 as pb
from foley_pipeline.backend import Embeddings
from foley_pipeline.cancellation import CancelToken
from foley_pipeline.paths import file_path
from foley_pipeline.progress import OnProgress, Progress, StageTimer, ignore_progress
from foley_pipeline.prompt import Prompt, as_prompt
from foley_pipeline.request import GenerationRequest
from foley_pipeline.result import GenerationResult, describe_inputs

Result = TypeVar("Result")

log = logging.getLogger("foley_client")


class AsyncApiBackend:
    """The `foley_pipeline.backend.Backend` that delegates to a public API, with its long-running generations.

    Server errors are raised as the same class of `foley.errors` as on the server, with `field` and `retry_after_s`.

    Args:
        channel: Address and credentials of the server.
        max_retries: How often a call is repeated that the server marks as retryable, or that has no effect if repeated
            and does not reach a server. Delays are the server's, or exponential, with jitter.
    """

    def __init__(self, channel: Channel, max_retries: int = _wire.MAX_RETRIES) -> None:
        if max_retries < 0:
            raise SettingError(f"max_retries is {max_retries}; use 0 or more")
        self.channel = channel
        self._max_retries = max_retries
        self._transport = AsyncTransport(channel)

    async def close(self) -> None:
        """Close the connection and cancel the calls in progress."""
        await self._transport.close()

    async def serving(self) -> bool:
        """Return whether the server accepts work.

        Raises:
            ServerUnavailable: No server responds.
        """
        response = await self._call(self._transport.health.Check, _wire.HEALTH_CHECK)
        return bool(response.status == _wire.SERVING)

    async def generate(
        self, request: GenerationRequest, *, progress: OnProgress = ignore_progress, cancel: CancelToken | None = None
    ) -> GenerationResult:
        """See `Backend.generate`. The server stops within one denoising step after a cancellation or a disconnect."""
        token = cancel or CancelToken()

        async def attempt() -> GenerationResult:
            return await _result(self._events(request, progress, token), progress)

        result = await self._retried(attempt, token)
        return _with_inputs(result, request)

    async def stream(
        self, request: GenerationRequest, *, progress: OnProgress = ignore_progress, cancel: CancelToken | None = None
    ) -> AsyncEvents:
        """Generate sound, and yield its events as they arrive: `Progress`, `AudioChunk`, and last the result.

        `progress` receives the progress of the upload. The call is not retried.
        """
        try:
            async with aclosing(self._events(request, progress, cancel or CancelToken())) as events:
                async for event in events:
                    yield _with_inputs(event, request) if isinstance(event, GenerationResult) else event
        except grpc.RpcError as error:
            failed = _wire.failure(error)
        else:
            return
        raise failed

    async def predict_envelope(
        self,
        video: Path | str,
        *,
        flow: OpticalFlow | None = None,
        progress: OnProgress = ignore_progress,
        cancel: CancelToken | None = None,
    ) -> Floats:
        """See `Backend.predict_envelope`."""
        video = file_path(video, "video")
        _wire.check_file(video)
        token = cancel or CancelToken()

        async def attempt() -> Any:
            messages = _wire.envelope_messages(video, flow, StageTimer(progress), token)
            method = self._transport.service.PredictEnvelope
            return await self._transport.call(method, messages, GENERATE_TIMEOUT_S, token)

        return _wire.envelope((await self._retried(attempt, token)).envelope)

    async def embed_prompt(
        self, prompt: Prompt | str, *, progress: OnProgress = ignore_progress, cancel: CancelToken | None = None
    ) -> Embeddings:
        """See `Backend.embed_prompt`."""
        prompt = as_prompt(prompt)
        if prompt.audio:
            _wire.check_file(prompt.audio)
        token = cancel or CancelToken()

        async def attempt() -> Any:
            messages = _wire.prompt_messages(prompt, StageTimer(progress), token)
            method = self._transport.service.EmbedPrompt
            return await self._transport.call(method, messages, GENERATE_TIMEOUT_S, token)

        response = await self._retried(attempt, token)
        return _wire.embedding(response.embedding), _wire.embedding(response.negative_embedding)

    async def create(
        self,
        request: GenerationRequest,
        *,
        request_id: str | None = None,
        progress: OnProgress = ignore_progress,
        cancel: CancelToken | None = None,
    ) -> str:
        """Start a long-running generation, which continues after a disconnect.

        Args:
            request: The request.
            request_id: UUID that makes the call idempotent: repeated calls return the same generation. Random by
                default.
            progress: Receives the progress of the upload.
            cancel: Cancels the call.

        Returns:
            The name of the generation.

        Raises:
            MediaError: A file cannot be read, or the server cannot decode it.
            AlreadyExists: `request_id` belongs to a different request.
        """
        _wire.check_files(request)
        token, chosen = cancel or CancelToken(), request_id or _wire.new_request_id()

        async def attempt() -> Any:
            messages = _wire.create_messages(request, chosen, StageTimer(progress), token)
            method = self._transport.service.CreateGeneration
            return await self._transport.call(method, messages, GENERATE_TIMEOUT_S, token)

        return str((await self._retried(attempt, token, idempotent=True)).name)

    async def wait(
        self, name: str, *, progress: OnProgress = ignore_progress, cancel: CancelToken | None = None
    ) -> GenerationResult:
        """Wait for a generation that `create` started, and return its result.

        `cancel` ends the wait, not the generation.

        Raises:
            NotFound: There is no generation with this name.
            FoleyError: The error with which the generation failed.
        """
        token, request = cancel or CancelToken(), pb.WatchGenerationRequest(name=name)

        async def attempt() -> GenerationResult:
            method = self._transport.service.WatchGeneration
            return await _result(self._decoded(method, request, token), progress)

        return await self._retried(attempt, token, idempotent=True)

    async def status(self, name: str) -> JobStatus:
        """Return the state of a generation.

        Raises:
            NotFound: There is no generation with this name.
        """
        request = operations_pb2.GetOperationRequest(name=name)
        return _wire.job_status(await self._call(self._transport.operations.GetOperation, request, idempotent=True))

    async def generations(self) -> AsyncStatuses:
        """Yield all generations started with this client's token, newest first."""
        token = ""
        while True:
            request = _wire.page_request(token)
            page = await self._call(self._transport.operations.ListOperations, request, idempotent=True)
            for operation in page.operations:
                yield _wire.job_status(operation)
            if not (token := page.next_page_token):
                return

    async def cancel(self, name: str) -> None:
        """Cancel a generation; has no effect on one that has ended.

        Raises:
            NotFound: There is no generation with this name.
        """
        request = operations_pb2.CancelOperationRequest(name=name)
        await self._call(self._transport.operations.CancelOperation, request, idempotent=True)

    async def delete(self, name: str) -> None:
        """Delete a generation that has ended.

        Raises:
            NotFound: There is no generation with this name.
            NotFinished: The generation has not ended.
        """
        request = operations_pb2.DeleteOperationRequest(name=name)
        await self._call(self._transport.operations.DeleteOperation, request)

    async def _events(self, request: GenerationRequest, progress: OnProgress, cancel: CancelToken) -> AsyncEvents:
        _wire.check_files(request)
        messages = _wire.generate_messages(request, StageTimer(progress), cancel)
        async with aclosing(self._decoded(self._transport.service.Generate, messages, cancel)) as events:
            async for event in events:
                yield event

    async def _decoded(self, method: Any, request: Any, cancel: CancelToken) -> AsyncEvents:
        decoder = EventDecoder()
        async with aclosing(self._transport.stream(method, request, GENERATE_TIMEOUT_S, cancel)) as messages:
            async for message in messages:
                cancel.check()
                for event in decoder.decode(message):
                    yield event
        decoder.check_finished()

    async def _call(self, method: Any, request: Any, idempotent: bool = False) -> Any:
        token = CancelToken()

        async def attempt() -> Any:
            return await self._transport.call(method, request, CALL_TIMEOUT_S, token)

        return await self._retried(attempt, token, idempotent)

    async def _retried(self, attempt: AsyncAttempt[Result], cancel: CancelToken, idempotent: bool = False) -> Result:
        """Return the result of `attempt`; retry it as `_wire.retry_delay_s` says."""
        retries = 0
        while True:
            try:
                return await attempt()
            except grpc.RpcError as error:
                failed = _wire.failure(error)
            cancel.check()
            delay_s = _wire.retry_delay_s(failed, retries, self._max_retries, idempotent)
            retries += 1
            log.info("retry %d of %d in %.1f s: %s", retries, self._max_retries, delay_s, failed)
            await self._transport.sleep(delay_s, cancel)


async def _result(events: AsyncEvents, progress: OnProgress) -> GenerationResult:
    """Return the result at the end of a stream of events, and pass on the progress."""
    result = None
    async with aclosing(events):
        async for event in events:  # to its end: leaving it at the result would cancel a call that is about to succeed
            if isinstance(event, Progress):
                progress(event)
            elif isinstance(event, GenerationResult):
                result = event
    assert result is not None, "the decoder checks that a stream ends with a result"
    return result


def _with_inputs(result: GenerationResult, request: GenerationRequest) -> GenerationResult:
    return replace(_wire.with_inputs(result, describe_inputs(request)), video=request.video)
