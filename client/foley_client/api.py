"""Synchronous SDK of the public API; `foley_client.api_async` is the asyncio counterpart.

    with FoleyClient("grpcs://foley.example.com", token=TOKEN) as client:
        sound = client.generate(Job(Path("hits.mp4"), GenerateOptions(text="a stick hits metal")))

Server errors are raised as the same class of `foley.errors` as on the server, with `field` and `retry_after_s`.
Calls that the server marks as retryable are retried, and every call has a deadline. Calls that take a `watch` raise
`foley.errors.Cancelled` as soon as `watch.cancel()` is called, from any thread, even if the server does not respond.
"""

from collections.abc import Callable, Iterator
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


class FoleyClient:
    """Client of the public API. Thread-safe; use it as a context manager, or call `close`.

    Args:
        url: See `foley_client.channel.Channel`.
        token: See `Channel`.
        ca: See `Channel`.
        certificate: See `Channel`.
        key: See `Channel`.
        attempts: Maximum number of attempts of a call that the server marks as retryable, the first one included.

    Raises:
        SettingError: The address or a certificate is not valid.
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
        self._channel = channel.open()
        self._foley = foley_pb2_grpc.FoleyServiceStub(self._channel)
        self._operations = operations_pb2_grpc.OperationsStub(self._channel)
        self._health = health_pb2_grpc.HealthStub(self._channel)

    def __enter__(self) -> "FoleyClient":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection and cancel the calls in progress."""
        self._channel.close()

    def serving(self) -> bool:
        """Return whether the server accepts work.

        Raises:
            ServerUnavailable: No server responds.
        """
        answer = self._call(self._health.Check, HEALTH_CHECK)
        return bool(answer.status == SERVING)

    def generate(self, job: Job, watch: Watch | None = None) -> Sound:
        """Generate sound for `job` on the server.

        The server stops within one denoising step after `watch.cancel()` or a disconnect.

        Args:
            job: Source, options and audio prompt.
            watch: Receives progress, and cancels the call.

        Returns:
            The envelope, and one take for each variation.

        Raises:
            MediaError: A file cannot be read, or the server cannot decode it.
            Cancelled: `watch.cancel()` was called.
            FoleyError: Any other error of the server.
        """
        check_files(job)
        one = watch or Watch()
        return self._retried(lambda: self._collect(self._foley.Generate, generate_messages(job, one), one), one)

    def predict_envelope(self, video: Path, flow: OpticalFlow | None = None, watch: Watch | None = None) -> Floats:
        """Predict the envelope of a video file.

        Args:
            video: The video file.
            flow: Optical flow method; None for the default of the server.
            watch: Receives progress, and cancels the call.

        Returns:
            RMS values [ceil(100 * duration_s)], float32, at 100 Hz.

        Raises:
            MediaError: The file cannot be read, or the server cannot decode it.
            Cancelled: `watch.cancel()` was called.
        """
        check_file(video)
        one = watch or Watch()
        method = self._foley.PredictEnvelope
        return envelope(self._retried(lambda: self._upload(method, envelope_messages(video, flow, one), one), one))

    def embed(self, prompt: Prompt, watch: Watch | None = None) -> tuple[Floats, Floats]:
        """Return the CLAP embeddings, [512] float32 each, of a prompt and of its negative text."""
        if prompt.audio:
            check_file(prompt.audio)
        one = watch or Watch()
        method = self._foley.EmbedPrompt
        answer = self._retried(lambda: self._upload(method, prompt_messages(prompt, one), one), one)
        return embedding(answer.embedding), embedding(answer.negative_embedding)

    def create(self, job: Job, request_id: str | None = None, watch: Watch | None = None) -> str:
        """Start `job` as a long-running generation, which continues after a disconnect.

        Args:
            job: Source, options and audio prompt.
            request_id: UUID that makes the call idempotent: repeated calls return the same generation. Random by
                default.
            watch: Receives progress of the upload, and cancels the call.

        Returns:
            The name of the generation, for `result`, `status`, `cancel` and `delete`.

        Raises:
            MediaError: A file cannot be read, or the server cannot decode it.
            AlreadyExists: `request_id` belongs to a different request.
        """
        check_files(job)
        one, chosen = watch or Watch(), request_id or new_request_id()
        method = self._foley.CreateGeneration
        return str(
            self._retried(
                lambda: self._upload(method, create_messages(job, chosen, one), one), one, idempotent=True
            ).name
        )

    def result(self, name: str, watch: Watch | None = None) -> Sound:
        """Wait for a generation started with `create`, and return its sound.

        `watch.cancel()` ends the wait, not the generation.

        Raises:
            NotFound: There is no generation with this name.
            FoleyError: The error with which the generation failed.
        """
        one, request = watch or Watch(), pb.WatchGenerationRequest(name=name)
        return self._retried(lambda: self._collect(self._foley.WatchGeneration, request, one), one, idempotent=True)

    def status(self, name: str) -> Generation:
        """Return the state of a generation.

        Raises:
            NotFound: There is no generation with this name.
        """
        request = operations_pb2.GetOperationRequest(name=name)
        return generation(self._call(self._operations.GetOperation, request, idempotent=True))

    def generations(self) -> Iterator[Generation]:
        """Yield all generations started with this client's token, newest first."""
        token = ""
        while True:
            page = self._call(self._operations.ListOperations, page_request(token), idempotent=True)
            yield from map(generation, page.operations)
            if not (token := page.next_page_token):
                return

    def cancel(self, name: str) -> None:
        """Cancel a generation; has no effect on one that has ended.

        Raises:
            NotFound: There is no generation with this name.
        """
        self._call(self._operations.CancelOperation, operations_pb2.CancelOperationRequest(name=name))

    def delete(self, name: str) -> None:
        """Delete a generation that has ended.

        Raises:
            NotFound: There is no generation with this name.
            NotFinished: The generation has not ended.
        """
        self._call(self._operations.DeleteOperation, operations_pb2.DeleteOperationRequest(name=name))

    def _call(self, method: Callable[..., Result], request: object, idempotent: bool = False) -> Result:
        return self._retried(
            lambda: method(request, timeout=CALL_TIMEOUT_S, metadata=self._metadata), idempotent=idempotent
        )

    def _upload(self, method: grpc.StreamUnaryMultiCallable, messages: Iterator[Any], watch: Watch) -> Any:
        """Send a client-streaming call and return the response.

        Raises:
            Cancelled: The call was cancelled.
            grpc.RpcError: The call failed.
        """
        call = method.future(messages, timeout=GENERATE_TIMEOUT_S, metadata=self._metadata)
        try:
            with watch.cancelling(call.cancel):
                return call.result()
        except grpc.FutureCancelledError:
            pass  # raise below: the traceback of this error references the call, see `failure`
        finally:
            call.cancel()
            del call
        raise Cancelled("stopped")

    def _collect(self, method: Callable[..., grpc.Call], request: object, watch: Watch) -> Sound:
        events = method(request, timeout=GENERATE_TIMEOUT_S, metadata=self._metadata)
        collector = Collector(watch)
        try:
            with watch.cancelling(events.cancel):
                for event in events:
                    collector.add(event)
        finally:
            events.cancel()
            collector.close()
            del events  # so that tracebacks do not reference the call, see `failure`
        return collector.sound()

    def _retried(self, call: Callable[[], Result], watch: Watch | None = None, idempotent: bool = False) -> Result:
        """Return the result of `call`; retry it as `retry_delay_s` says."""
        one = watch or Watch()
        for attempt in range(1, self._attempts + 1):
            try:
                return call()
            except grpc.RpcError as error:
                failed = failure(error)
            one.check()  # raises Cancelled if the watch ended the call
            one.sleep(retry_delay_s(failed, attempt, self._attempts, idempotent))
        raise SettingError(f"attempts is {self._attempts}; give 1 or more")
