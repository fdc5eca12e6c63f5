"""Implementation of `foley.v1.FoleyService`; `CallInterceptor` has authorised the calls."""

import asyncio
import hashlib
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message

from foley import clip
from foley.errors import InvalidInput, MediaTooLarge, TimedOut
from foley_pipeline.api import foley_pb2 as pb
from foley_pipeline.api import foley_pb2_grpc
from foley_pipeline.api.messages import field
from foley_server.api.interceptor import caller
from foley_server.api.operations import operation
from foley_server.api.quotas import Quotas
from foley_server.jobs.jobs import Jobs, Upload, error_of
from foley_server.jobs.progress import Progress
from foley_server.jobs.store import Job, Kind
from foley_server.jobs.upload import read_first
from foley_server.telemetry.metrics import Metrics

WRITE_TIMEOUT_S = 60.0  # of one response, while the caller's flow-control window is full


@dataclass
class FoleyService(foley_pb2_grpc.FoleyServiceServicer):
    """The methods of the service; see `foley.proto`.

    Attributes:
        jobs: The jobs.
        quotas: Limits of the callers.
        metrics: Prometheus metrics.
        upload_timeout_s: Time limit of an upload.
        max_duration_s: Maximum duration of an envelope.
    """

    jobs: Jobs
    quotas: Quotas
    metrics: Metrics
    upload_timeout_s: float
    max_duration_s: float

    async def Generate(self, request_iterator: AsyncIterator[pb.GenerateRequest], context: Any) -> None:
        """Generate sound and stream progress and results to the caller."""
        options = await read_first(request_iterator, "options")
        job = await self._accept(request_iterator, "generate", options, "options")
        async with self.jobs.call(job) as progress:
            with field("options"):
                await self._send_events(progress, context)

    async def PredictEnvelope(
        self, request_iterator: AsyncIterator[pb.PredictEnvelopeRequest], context: Any
    ) -> pb.PredictEnvelopeResponse:
        """Predict the envelope of a video."""
        message = await read_first(request_iterator, "video")
        job = await self._accept(request_iterator, "envelope", message, "video")
        return pb.PredictEnvelopeResponse.FromString(await self._response(job))

    async def EmbedPrompt(
        self, request_iterator: AsyncIterator[pb.EmbedPromptRequest], context: Any
    ) -> pb.EmbedPromptResponse:
        """Embed a prompt and its negative text."""
        message = await read_first(request_iterator, "prompt")
        job = await self._accept(request_iterator, "embedding", message, "prompt")
        return pb.EmbedPromptResponse.FromString(await self._response(job))

    async def CreateGeneration(self, request_iterator: AsyncIterator[pb.CreateGenerationRequest], context: Any) -> Any:
        """Accept a long-running generation; its result is kept for a limited time after it has ended."""
        message = await read_first(request_iterator, "options")
        principal, request_id = caller.get(), _uuid(message.request_id)
        digest = hashlib.sha256(message.options.SerializeToString(deterministic=True)).hexdigest()
        job = await self.jobs.find_request(principal.name, request_id, digest)
        if job is None:
            self._check_envelope(message.options, "options.options")
            async with self.jobs.receive(
                principal.name, "generate", message.options, "options.options", self.quotas.of(principal), call=False
            ) as upload:
                files_digest = await self._receive(request_iterator, upload)
                job = await self.jobs.accept(upload, request_id=request_id, digest=f"{digest}:{files_digest}")
        return await operation(job, self.jobs)

    async def WatchGeneration(self, request: pb.WatchGenerationRequest, context: Any) -> None:
        """Stream the events of a generation, from its start."""
        with field("name"):
            job = await self.jobs.find(caller.get().name, request.name)
        with self.jobs.watch(job) as progress:
            await self._send_events(progress, context)

    async def _accept(self, messages: AsyncIterator[Any], kind: Kind, request: Message, path: str) -> Job:
        """Receive and queue a job for which the caller waits."""
        if isinstance(request, pb.GenerateOptions):
            self._check_envelope(request, path)
        principal = caller.get()
        async with self.jobs.receive(
            principal.name, kind, request, path, self.quotas.of(principal), call=True
        ) as upload:
            await self._receive(messages, upload)
            return await self.jobs.accept(upload, call=True)

    async def _response(self, job: Job) -> bytes:
        """Wait for a job, and return its serialised response."""
        async with self.jobs.call(job) as progress:
            ended = await progress.wait()
        if error := error_of(ended):
            raise error
        return ended.result or b""

    async def _send_events(self, progress: Progress, context: Any) -> None:
        """Send the events of a generation until its end, then its sounds."""
        async for event in progress.events():
            await _send(event, context)
        job = await progress.wait()
        if error := error_of(job):
            raise error
        generation = self.jobs.generation(job)
        for i in range(len(generation.takes)):
            async for samples in self.jobs.sound(job, i):
                await _send(pb.GenerateEvent(audio={"variation": i, "samples": samples}), context)
        await _send(pb.GenerateEvent(finished=generation), context)

    async def _receive(self, messages: AsyncIterator[Any], upload: Upload) -> str:
        """Receive the files of an upload, and return their digest."""
        files = upload.work.files
        try:
            digest = await asyncio.wait_for(upload.folder.receive(messages, files), self.upload_timeout_s)
        except asyncio.TimeoutError as error:
            raise TimedOut(f"the upload took longer than {self.upload_timeout_s:g} s; send a smaller file") from error
        self.metrics.upload_bytes.inc(sum(file.stat().st_size for file in files.values()))
        return digest

    def _check_envelope(self, options: pb.GenerateOptions, path: str) -> None:
        frames = len(options.envelope.envelope.rms)
        if frames > self.max_duration_s * clip.ENVELOPE_RATE_HZ:
            with field(f"{path}.envelope"):
                raise MediaTooLarge(f"the envelope is longer than {self.max_duration_s:g} s, the limit; shorten it")


async def _send(event: pb.GenerateEvent, context: Any) -> None:
    """Send an event.

    Raises:
        TimedOut: The caller does not read.
    """
    try:
        await asyncio.wait_for(context.write(event), WRITE_TIMEOUT_S)
    except asyncio.TimeoutError as error:
        raise TimedOut(f"the response was not read for {WRITE_TIMEOUT_S:g} s; read it faster") from error


def _uuid(text: str) -> str:
    with field("options.request_id"):
        try:
            return str(uuid.UUID(text))
        except ValueError as error:
            raise InvalidInput("the request id is not a UUID; create a new one for every request") from error
