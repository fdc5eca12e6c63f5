"""Requests, responses and retry rules of the public API, shared by the synchronous and the asyncio client."""

import random
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
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
from foley_pipeline.api.messages import CHUNK_BYTES, options_of, prompt_message, takes_of, video_message
from foley_pipeline.api.status import from_call, from_status
from foley_pipeline.job import Job, Sound
from foley_pipeline.prompt import Prompt
from foley_pipeline.watch import Watch

GENERATE_TIMEOUT_S = 3600.0
CALL_TIMEOUT_S = 60.0
ATTEMPTS = 4
BACKOFF_S = 1.0
MAX_BACKOFF_S = 30.0

HEALTH_CHECK = health_pb2.HealthCheckRequest(service="foley.v1.FoleyService")
SERVING = health_pb2.HealthCheckResponse.SERVING

State = Literal["queued", "running", "succeeded", "failed", "cancelled"]


@dataclass(frozen=True)
class Generation:
    """State of a long-running generation.

    Attributes:
        name: Name of the operation on the server.
        request_id: UUID given to `FoleyClient.create`.
        state: Lifecycle state.
        queue_position: Number of generations ahead of it in the queue.
        steps_done: Number of denoising steps done.
        steps: Total number of denoising steps.
        error: The error that ended it, if any.
    """

    name: str
    request_id: str
    state: State
    queue_position: int
    steps_done: int
    steps: int
    error: FoleyError | None


class Collector:
    """Assembles a `Sound` from the events of a generation, and reports progress to a watch."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._stage = ExitStack()
        self._total = self._stage.enter_context(watch.stage("on the server"))
        self._shown: str | None = None
        self._envelope: Floats | None = None
        self._sounds: dict[int, bytearray] = {}
        self._finished: pb.Generation | None = None

    def add(self, event: pb.GenerateEvent) -> None:
        """Process the next event.

        Raises:
            Cancelled: The watch was cancelled.
        """
        self._watch.check()
        kind = event.WhichOneof("event")
        if kind == "accepted" and event.accepted.queue_position:
            self._show(f"waiting, {event.accepted.queue_position} in front", 0, None)
        elif kind == "envelope_ready":
            self._envelope = np.array(event.envelope_ready.envelope.rms, np.float32)
        elif kind == "step_done":
            self._show("denoising", event.step_done.done_count, event.step_done.total_count)
        elif kind == "audio":
            self._sounds.setdefault(event.audio.variation, bytearray()).extend(event.audio.samples)
        elif kind == "finished":
            self._finished = event.finished

    def close(self) -> None:
        """End the stages that are shown as running."""
        if self._shown:
            self._watch.on_end(self._shown)
            self._shown = None
        self._stage.close()

    def sound(self) -> Sound:
        """Return the assembled sound.

        Raises:
            ServerFailure: The stream ended early, or audio is missing.
        """
        if self._finished is None or self._envelope is None:
            raise ServerFailure("the server ended the call before it was finished; try again")
        try:
            takes = takes_of(self._finished, self._sounds)
        except ValueError as error:
            raise ServerFailure(f"the server sent less than it said ({error}); try again") from error
        self._watch.timings_s.update(takes[0].timings_s if takes else {})
        return Sound(self._envelope, takes)

    def _show(self, stage: str, done: int, total: int | None) -> None:
        if self._shown not in (None, stage):
            self._watch.on_end(str(self._shown))
        self._shown = stage
        self._watch.on_progress(stage, done, total)


def failure(error: grpc.RpcError) -> FoleyError:
    """Convert the error of a failed call, and clear its traceback.

    grpc raises the call object itself, and its traceback references the call. Clearing the traceback breaks this cycle:
    otherwise the call is finalised at interpreter shutdown, where it can deadlock on a lock held by a thread that no
    longer runs (1 of 170 runs of the command line).
    """
    error.__traceback__ = None
    return from_call(error)


def retry_delay_s(failed: FoleyError, attempt: int, attempts: int, idempotent: bool) -> float:
    """Return the delay in seconds before a failed call is retried.

    The delay is the server's, from RetryInfo. An idempotent call is also retried where no server answers, as during a
    restart, with exponential back-off. Jitter spreads the retries of many clients.

    Args:
        failed: The error of the call.
        attempt: Number of this attempt, from 1.
        attempts: Number of attempts in all.
        idempotent: Whether a repetition of the call has no further effect.

    Raises:
        FoleyError: `failed` itself, if it is not retryable or this was the last attempt.
    """
    delay_s = failed.retry_after_s
    if delay_s is None and idempotent and isinstance(failed, ServerUnavailable):
        delay_s = BACKOFF_S * 2.0**attempt
    if delay_s is None or attempt >= attempts:
        raise failed
    return min(delay_s, MAX_BACKOFF_S) * random.uniform(1.0, 1.25)


def generate_messages(job: Job, watch: Watch) -> Iterator[pb.GenerateRequest]:
    """Yield the request messages of `Generate`."""
    yield pb.GenerateRequest(options=options_of(job))
    for chunk in _files(job, watch):
        yield pb.GenerateRequest(chunk=chunk)


def create_messages(job: Job, request_id: str, watch: Watch) -> Iterator[pb.CreateGenerationRequest]:
    """Yield the request messages of `CreateGeneration`."""
    options = pb.CreateGenerationOptions(request_id=request_id, options=options_of(job))
    yield pb.CreateGenerationRequest(options=options)
    for chunk in _files(job, watch):
        yield pb.CreateGenerationRequest(chunk=chunk)


def envelope_messages(video: Path, flow: OpticalFlow | None, watch: Watch) -> Iterator[pb.PredictEnvelopeRequest]:
    """Yield the request messages of `PredictEnvelope`."""
    yield pb.PredictEnvelopeRequest(video=video_message(flow))
    for chunk in _chunks(video, pb.FILE_KIND_VIDEO, watch):
        yield pb.PredictEnvelopeRequest(chunk=chunk)


def prompt_messages(prompt: Prompt, watch: Watch) -> Iterator[pb.EmbedPromptRequest]:
    """Yield the request messages of `EmbedPrompt`."""
    yield pb.EmbedPromptRequest(prompt=prompt_message(prompt))
    if prompt.audio:
        for chunk in _chunks(prompt.audio, pb.FILE_KIND_AUDIO_PROMPT, watch):
            yield pb.EmbedPromptRequest(chunk=chunk)


def new_request_id() -> str:
    """Return a random UUID."""
    return str(uuid.uuid4())


def page_request(token: str) -> operations_pb2.ListOperationsRequest:
    """Return the request for the page of operations at `token`; an empty token is the first page."""
    return operations_pb2.ListOperationsRequest(name="operations", page_token=token)


def envelope(answer: pb.PredictEnvelopeResponse) -> Floats:
    """Return the envelope [frames at 100 Hz], float32, of a response."""
    return np.array(answer.envelope.rms, np.float32)


def embedding(message: pb.Embedding) -> Floats:
    """Return the embedding [512], float32, of a message."""
    return np.array(message.values, np.float32)


def generation(operation: operations_pb2.Operation) -> Generation:
    """Convert an operation to a `Generation`."""
    metadata = pb.GenerationMetadata()
    operation.metadata.Unpack(metadata)
    state: Any = pb.GenerationState.Name(metadata.state).removeprefix("GENERATION_STATE_").lower()
    return Generation(
        operation.name,
        metadata.request_id,
        state,
        metadata.queue_position,
        metadata.progress.done_count,
        metadata.progress.total_count,
        from_status(operation.error) if operation.HasField("error") else None,
    )


def check_files(job: Job) -> None:
    """Check that the files of `job` can be read.

    Raises:
        MediaError: A file does not exist or cannot be read.
    """
    for path in (job.source, job.prompt.audio):
        if isinstance(path, Path):
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


def _files(job: Job, watch: Watch) -> Iterator[pb.FileChunk]:
    if isinstance(job.source, Path):
        yield from _chunks(job.source, pb.FILE_KIND_VIDEO, watch)
    if job.prompt.audio:
        yield from _chunks(job.prompt.audio, pb.FILE_KIND_AUDIO_PROMPT, watch)


def _chunks(path: Path, kind: pb.FileKind, watch: Watch) -> Iterator[pb.FileChunk]:
    # gRPC consumes this generator in a thread and hides its errors; call `check_file` first
    with path.open("rb") as file, watch.stage("uploading", path.stat().st_size) as stage:
        while data := file.read(CHUNK_BYTES):
            yield pb.FileChunk(kind=kind, data=data)
            stage.advance(len(data))
