"""The SDK of the public API; `foley_client.api_async` is the same for asyncio.

with FoleyClient("grpcs://foley.example.com", token=TOKEN) as client:
    sound = client.generate(Job(Path("hits.mp4"), Prompt("a stick hits metal")))

Every error of the server arrives as the class of `foley.errors` that it was there, with `field` and `retry_after_s`.
Calls that the server says may be tried again are, a few times; no call waits for ever. Calls that take a `watch` raise
`foley.errors.Cancelled` as soon as `watch.cancel()` is called, from any thread, whether or not the server answers.
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
from foley.stages import FlowMethod
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
    pause_s,
    prompt_messages,
)
from foley_pipeline.api import foley_pb2 as pb
from foley_pipeline.api import foley_pb2_grpc
from foley_pipeline.job import Job, Sound
from foley_pipeline.prompt import Prompt
from foley_pipeline.watch import Watch

Result = TypeVar("Result")


class FoleyClient:
    """A Foley server's public API. Use it as a context manager, or call `close`; calls may come from several threads.

    Args:
        url, token, ca, certificate, key: see `foley_client.channel.Channel`.
        attempts: how often a call is made in all, where the server says that it may be tried again.

    Raises:
        SettingError: an address or a certificate that cannot be used.
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
        """Close the connection; what is under way is cancelled."""
        self._channel.close()

    def serving(self) -> bool:
        """Whether the server takes work now. Raises ServerUnavailable where none answers."""
        answer = self._call(self._health.Check, HEALTH_CHECK)
        return bool(answer.status == SERVING)

    def generate(self, job: Job, watch: Watch | None = None) -> Sound:
        """Do `job` on the server; going away, or `watch.cancel`, stops it there within one step.

        Raises:
            MediaError: a file cannot be read, or the server cannot use it.
            FoleyError: what the server says.
        """
        check_files(job)
        one = watch or Watch()
        return self._retried(lambda: self._collect(self._foley.Generate, generate_messages(job, one), one), one)

    def predict_envelope(self, video: Path, flow: FlowMethod | None = None, watch: Watch | None = None) -> Floats:
        """The envelope [ceil(duration * 100)] that the server predicts for a video file."""
        check_file(video)
        one = watch or Watch()
        method = self._foley.PredictEnvelope
        return envelope(self._retried(lambda: self._upload(method, envelope_messages(video, flow, one), one), one))

    def embed(self, prompt: Prompt, watch: Watch | None = None) -> tuple[Floats, Floats]:
        """CLAP embeddings, [512] each: of a prompt, and of what the sound should not be."""
        if prompt.audio:
            check_file(prompt.audio)
        one = watch or Watch()
        method = self._foley.EmbedPrompt
        answer = self._retried(lambda: self._upload(method, prompt_messages(prompt, one), one), one)
        return embedding(answer.embedding), embedding(answer.negative_embedding)

    def create(self, job: Job, request_id: str | None = None, watch: Watch | None = None) -> str:
        """Leave `job` with the server, which keeps it until it is done; its name, for the methods below.

        The same `request_id`, a UUID, leaves it once however often it is called.
        """
        check_files(job)
        one, chosen = watch or Watch(), request_id or new_request_id()
        method = self._foley.CreateGeneration
        return str(self._retried(lambda: self._upload(method, create_messages(job, chosen, one), one), one).name)

    def result(self, name: str, watch: Watch | None = None) -> Sound:
        """What comes of a generation that was left with the server; waits for it. `watch.cancel` ends the waiting only.

        Raises:
            NotFound: there is none of this name.
            FoleyError: why it failed.
        """
        one, request = watch or Watch(), pb.WatchGenerationRequest(name=name)
        return self._retried(lambda: self._collect(self._foley.WatchGeneration, request, one), one)

    def status(self, name: str) -> Generation:
        """Where a generation is. Raises NotFound."""
        request = operations_pb2.GetOperationRequest(name=name)
        return generation(self._call(self._operations.GetOperation, request))

    def generations(self) -> Iterator[Generation]:
        """All that one's own token has left, the newest first."""
        token = ""
        while True:
            page = self._call(self._operations.ListOperations, page_request(token))
            yield from map(generation, page.operations)
            if not (token := page.next_page_token):
                return

    def cancel(self, name: str) -> None:
        """Stop a generation; one that has ended stays as it is. Raises NotFound."""
        self._call(self._operations.CancelOperation, operations_pb2.CancelOperationRequest(name=name))

    def delete(self, name: str) -> None:
        """Forget a generation that has ended. Raises NotFound, NotFinished."""
        self._call(self._operations.DeleteOperation, operations_pb2.DeleteOperationRequest(name=name))

    def _call(self, method: Callable[..., Result], request: object) -> Result:
        return self._retried(lambda: method(request, timeout=CALL_TIMEOUT_S, metadata=self._metadata))

    def _upload(self, method: grpc.StreamUnaryMultiCallable, messages: Iterator[Any], watch: Watch) -> Any:
        """The answer to an upload. Raises Cancelled, grpc.RpcError."""
        call = method.future(messages, timeout=GENERATE_TIMEOUT_S, metadata=self._metadata)
        try:
            with watch.cancelling(call.cancel):
                return call.result()
        except grpc.FutureCancelledError:
            pass  # its traceback holds the call, see `failure`
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
            del events  # from the traceback, see `failure`
        return collector.sound()

    def _retried(self, call: Callable[[], Result], watch: Watch | None = None) -> Result:
        """`call`, again where the server says when."""
        one = watch or Watch()
        for attempt in range(1, self._attempts + 1):
            try:
                return call()
            except grpc.RpcError as error:
                failed = failure(error)
            one.check()  # a call that the watch has ended
            one.sleep(pause_s(failed, last=attempt == self._attempts))
        raise SettingError(f"attempts is {self._attempts}; give 1 or more")
