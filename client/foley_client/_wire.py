"""Messages and retry rules of the public API, shared by the synchronous and the asyncio client."""

import random
import time
import uuid
from collections.abc import AsyncGenerator, Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import grpc
import numpy as np
from google.longrunning import operations_pb2
from grpc_health.v1 import health_pb2

from foley.envelope import Floats
from foley.errors import FoleyError, MediaError, ServerFailure, ServerUnavailable
from foley.options import OpticalFlow
from foley_pipeline.api import foley_pb2 as pb
from foley_pipeline.api.messages import (
    CHUNK_BYTES,
    prompt_to_proto,
    request_to_proto,
    result_from_proto,
    video_to_proto,
)
from foley_pipeline.api.status import from_call, from_status
from foley_pipeline.cancellation import CancelToken
from foley_pipeline.progress import Progress, Stage, StageTimer
from foley_pipeline.prompt import Prompt
from foley_pipeline.request import GenerationRequest
from foley_pipeline.result import GenerationResult

GENERATE_TIMEOUT_S = 3600.0
CALL_TIMEOUT_S = 60.0
MAX_RETRIES = 3
BACKOFF_S = 1.0
MAX_BACKOFF_S = 30.0

HEALTH_CHECK = health_pb2.HealthCheckRequest(service="foley.v1.FoleyService")
SERVING = health_pb2.HealthCheckResponse.SERVING

State = Literal["queued", "running", "succeeded", "failed", "cancelled"]


@dataclass(frozen=True)
class JobStatus:
    """Status of a long-running generation.

    Attributes:
        name: Name of the generation on the server.
        request_id: UUID given to `FoleyClient.create`.
        state: Lifecycle state.
        queue_position: Number of generations ahead of it in the queue.
        progress: Progress of the current stage; None if it is not running.
        error: The error that ended it, if any.
    """

    name: str
    request_id: str
    state: State
    queue_position: int
    progress: Progress | None
    error: FoleyError | None

    @property
    def ended(self) -> bool:
        """Whether it has succeeded, failed, or was cancelled."""
        return self.state not in ("queued", "running")


Statuses = Generator[JobStatus, None, None]
AsyncStatuses = AsyncGenerator[JobStatus, None]


@dataclass(frozen=True, eq=False)
class AudioChunk:
    """Part of a sound.

    Attributes:
        variation: Index of the variation, from 0.
        samples: The next samples at 16 kHz, float32 [n] in [-1, 1].
    """

    variation: int
    samples: Floats


Event = Progress | AudioChunk | GenerationResult
Events = Generator[Event, None, None]
AsyncEvents = AsyncGenerator[Event, None]


class EventDecoder:
    """Converts the messages of a generation, in order, to events."""

    def __init__(self) -> None:
        self._running: dict[str, tuple[Progress, float]] = {}  # last progress, and time of the first, of each stage
        self._envelope: Floats | None = None
        self._sounds: dict[int, bytearray] = {}
        self._finished = False

    def decode(self, message: pb.GenerateEvent) -> Iterator[Event]:
        """Yield the events of the next message.

        Raises:
            ServerFailure: Audio is missing.
        """
        kind = message.WhichOneof("event")
        if kind == "accepted":
            if position := message.accepted.queue_position:
                yield self._begin(Progress(Stage.QUEUE, 0, position))
            else:
                yield from self._end(Stage.QUEUE)
        elif kind == "progress":
            stage = message.progress
            progress = self._begin(Progress(stage.stage, stage.done_count, stage.total_count or None))
            yield progress
            if progress.done == progress.total:
                yield from self._end(progress.stage)
        elif kind == "envelope_ready":
            yield from self._end(Stage.FEATURES, Stage.PROMPT)
            self._envelope = envelope(message.envelope_ready.envelope)
            yield Progress(Stage.VIDEO2RMS, 1, 1, envelope=self._envelope)
        elif kind == "audio":
            audio = message.audio
            self._sounds.setdefault(audio.variation, bytearray()).extend(audio.samples)
            yield AudioChunk(audio.variation, np.frombuffer(audio.samples, "<f4").astype(np.float32))
        elif kind == "finished":
            yield from self._end(*self._running)
            yield self._result(message.finished)

    def check_finished(self) -> None:
        """Check that the last message was the result.

        Raises:
            ServerFailure: The stream ended early.
        """
        if not self._finished:
            raise ServerFailure("the server ended the call before the result; try again")

    def _begin(self, progress: Progress) -> Progress:
        _, started = self._running.get(progress.stage, (None, time.monotonic()))
        self._running[progress.stage] = progress, started
        return progress

    def _end(self, *stages: str) -> Iterator[Progress]:
        for stage in stages:
            if stage in self._running:
                progress, started = self._running.pop(stage)
                yield replace(progress, seconds=time.monotonic() - started)

    def _result(self, message: pb.Generation) -> GenerationResult:
        if self._envelope is None:
            raise ServerFailure("the server sent a result without an envelope; try again")
        try:
            result = result_from_proto(message, self._envelope, self._sounds)
        except ValueError as error:
            raise ServerFailure(f"the server sent an incomplete sound ({error}); try again") from error
        self._finished = True
        return result


def failure(error: grpc.RpcError) -> FoleyError:
    """Convert the error of a failed call, and clear its traceback.

    grpc raises the call object itself, and its traceback references the call. Clearing the traceback breaks this cycle:
    otherwise the call is finalised at interpreter shutdown, where it can deadlock on a lock held by a thread that no
    longer runs (1 of 170 runs of the command line).
    """
    error.__traceback__ = None
    return from_call(error)


def retry_delay_s(failed: FoleyError, retries: int, max_retries: int, idempotent: bool) -> float:
    """Return the delay in seconds before a failed call is retried.

    The delay is the server's, from RetryInfo. An idempotent call is also retried where no server answers, as during a
    restart, with exponential back-off. Jitter spreads the retries of many clients.

    Args:
        failed: The error of the call.
        retries: Number of retries so far.
        max_retries: Maximum number of retries.
        idempotent: Whether a repetition of the call has no further effect.

    Raises:
        FoleyError: `failed` itself, if it is not retryable or this was the last retry.
    """
    delay_s = failed.retry_after_s
    if delay_s is None and idempotent and isinstance(failed, ServerUnavailable):
        delay_s = BACKOFF_S * 2.0 ** (retries + 1)
    if delay_s is None or retries >= max_retries:
        raise failed
    return min(delay_s, MAX_BACKOFF_S) * random.uniform(1.0, 1.25)


def generate_messages(
    request: GenerationRequest, timer: StageTimer, cancel: CancelToken
) -> Iterator[pb.GenerateRequest]:
    """Yield the request messages of `Generate`."""
    yield pb.GenerateRequest(options=request_to_proto(request))
    for chunk in _files(request, timer, cancel):
        yield pb.GenerateRequest(chunk=chunk)


def create_messages(
    request: GenerationRequest, request_id: str, timer: StageTimer, cancel: CancelToken
) -> Iterator[pb.CreateGenerationRequest]:
    """Yield the request messages of `CreateGeneration`."""
    options = pb.CreateGenerationOptions(request_id=request_id, options=request_to_proto(request))
    yield pb.CreateGenerationRequest(options=options)
    for chunk in _files(request, timer, cancel):
        yield pb.CreateGenerationRequest(chunk=chunk)


def envelope_messages(
    video: Path, flow: OpticalFlow | None, timer: StageTimer, cancel: CancelToken
) -> Iterator[pb.PredictEnvelopeRequest]:
    """Yield the request messages of `PredictEnvelope`."""
    yield pb.PredictEnvelopeRequest(video=video_to_proto(flow))
    for chunk in _chunks(video, pb.FILE_KIND_VIDEO, timer, cancel):
        yield pb.PredictEnvelopeRequest(chunk=chunk)


def prompt_messages(prompt: Prompt, timer: StageTimer, cancel: CancelToken) -> Iterator[pb.EmbedPromptRequest]:
    """Yield the request messages of `EmbedPrompt`."""
    yield pb.EmbedPromptRequest(prompt=prompt_to_proto(prompt))
    if prompt.audio:
        for chunk in _chunks(prompt.audio, pb.FILE_KIND_AUDIO_PROMPT, timer, cancel):
            yield pb.EmbedPromptRequest(chunk=chunk)


def new_request_id() -> str:
    """Return a random UUID."""
    return str(uuid.uuid4())


def page_request(token: str) -> operations_pb2.ListOperationsRequest:
    """Return the request for the page of operations at `token`; an empty token is the first page."""
    return operations_pb2.ListOperationsRequest(name="operations", page_token=token)


def envelope(message: pb.Envelope) -> Floats:
    """Return the envelope, float32 [frames at 100 Hz], of a message."""
    return np.array(message.rms, np.float32)


def embedding(message: pb.Embedding) -> Floats:
    """Return the embedding, float32 [512], of a message."""
    return np.array(message.values, np.float32)


def job_status(operation: operations_pb2.Operation) -> JobStatus:
    """Return the status in an operation."""
    metadata = pb.GenerationMetadata()
    operation.metadata.Unpack(metadata)
    state: Any = pb.GenerationState.Name(metadata.state).removeprefix("GENERATION_STATE_").lower()
    stage = metadata.progress
    return JobStatus(
        operation.name,
        metadata.request_id,
        state,
        metadata.queue_position,
        Progress(stage.stage, stage.done_count, stage.total_count or None) if stage.stage else None,
        from_status(operation.error) if operation.HasField("error") else None,
    )


def with_inputs(result: GenerationResult, inputs: Mapping[str, Any]) -> GenerationResult:
    """Complete the recipes with the names and hashes of the files, which the server received without names."""
    return replace(result, takes=[replace(take, recipe={**take.recipe, **inputs}) for take in result.takes])


def check_files(request: GenerationRequest) -> None:
    """Check that the files of `request` can be read.

    Raises:
        MediaError: A file does not exist or cannot be read.
    """
    for path in (request.video, request.audio):
        if path:
            check_file(path)


def check_file(path: Path) -> None:
    """Check that `path` is a readable file.

    Raises:
        MediaError: The file does not exist or cannot be read.
    """
    try:
        if not path.is_file():
            raise MediaError(f"{path} is not a file; give the name of a media file")
        path.open("rb").close()
    except OSError as error:
        raise MediaError(f"{path} cannot be read ({error.strerror}); check the permissions") from error


def _files(request: GenerationRequest, timer: StageTimer, cancel: CancelToken) -> Iterator[pb.FileChunk]:
    if request.video and not request.envelope:
        yield from _chunks(request.video, pb.FILE_KIND_VIDEO, timer, cancel)
    if request.audio:
        yield from _chunks(request.audio, pb.FILE_KIND_AUDIO_PROMPT, timer, cancel)


def _chunks(path: Path, kind: pb.FileKind, timer: StageTimer, cancel: CancelToken) -> Iterator[pb.FileChunk]:
    # gRPC consumes this generator in a thread and hides its errors, which therefore also cancel the call
    try:
        with path.open("rb") as file, timer.stage(Stage.UPLOAD, path.stat().st_size) as stage:
            while data := file.read(CHUNK_BYTES):
                cancel.check()
                yield pb.FileChunk(kind=kind, data=data)
                stage.advance(len(data))
    except OSError as error:
        cancel.cancel(MediaError(f"{path} cannot be read ({error.strerror}); check the disk and the permissions"))
        raise
    except Exception as error:  # of the caller's `on_progress`
        cancel.cancel(error)
        raise
