"""Implementation of `foley.v1.FoleyService`; `CallInterceptor` has authorised the calls."""

import asyncio
import hashlib
import uuid
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foley import clip
from foley.envelope import Floats
from foley.errors import InvalidInput, MediaTooLarge, TimedOut
from foley_pipeline.api import foley_pb2 as pb
from foley_pipeline.api import foley_pb2_grpc
from foley_pipeline.api.messages import field, flow_from_proto, prompt_from_proto, request_from_proto
from foley_pipeline.backend import Embeddings
from foley_pipeline.cancellation import CancelToken
from foley_pipeline.progress import OnProgress
from foley_pipeline.request import GenerationRequest
from foley_pipeline.triton_backend import TritonBackend
from foley_server.api.interceptor import caller
from foley_server.api.operations import operation
from foley_server.jobs.engine import Engine
from foley_server.jobs.generations import Generations, expected_files
from foley_server.jobs.progress import Progress
from foley_server.jobs.upload import UploadFolder, Uploads, read_first
from foley_server.telemetry import logs
from foley_server.telemetry.metrics import Metrics

WRITE_TIMEOUT_S = 60.0  # of one response, while the caller's flow-control window is full


@dataclass
class FoleyService(foley_pb2_grpc.FoleyServiceServicer):
    """The methods of the service; see `foley.proto`.

    Attributes:
        engine: Runs the pipeline.
        generations: Long-running generations.
        uploads: Folders for uploaded files.
        metrics: Prometheus metrics.
        upload_timeout_s: Time limit of an upload.
        max_duration_s: Maximum duration of an envelope.
    """

    engine: Engine
    generations: Generations
    uploads: Uploads
    metrics: Metrics
    upload_timeout_s: float
    max_duration_s: float

    async def Generate(self, request_iterator: AsyncIterator[pb.GenerateRequest], context: Any) -> None:
        """Generate sound and stream progress and results to the caller."""
        options = await read_first(request_iterator, "options")
        async with self.engine.request():
            with self.uploads.folder() as folder:
                with field("options"):
                    request = self._request(options, folder)
                await self._receive(request_iterator, expected_files(options, folder), folder)
                progress = Progress(logs.request_id.get())
                work = asyncio.create_task(self._generate(progress, request))
                try:
                    await _send_events(progress, context)
                finally:
                    work.cancel()
                    await asyncio.wait([work])

    async def PredictEnvelope(
        self, request_iterator: AsyncIterator[pb.PredictEnvelopeRequest], context: Any
    ) -> pb.PredictEnvelopeResponse:
        """Predict the envelope of a video."""
        message = await read_first(request_iterator, "video")
        async with self.engine.request():
            with field("video"):
                flow = flow_from_proto(message)
            with self.uploads.folder() as folder:
                files = {pb.FILE_KIND_VIDEO: folder.video}
                await self._receive(request_iterator, files, folder)

                def predict(
                    backend: TritonBackend, on_progress: OnProgress, cancel: CancelToken
                ) -> tuple[Floats, float]:
                    video = backend.loader.video(folder.video)
                    envelope = backend.predict_envelope(video, flow=flow, progress=on_progress, cancel=cancel)
                    return envelope, video.info.duration_s

                progress = Progress(logs.request_id.get())
                envelope, duration_s = await self.engine.in_time(self.engine.call(progress, predict))
        response = pb.PredictEnvelopeResponse(envelope=pb.Envelope(rms=envelope))
        response.video_duration.FromNanoseconds(round(duration_s * 1e9))
        return response

    async def EmbedPrompt(
        self, request_iterator: AsyncIterator[pb.EmbedPromptRequest], context: Any
    ) -> pb.EmbedPromptResponse:
        """Embed a prompt and its negative text."""
        message = await read_first(request_iterator, "prompt")
        async with self.engine.request():
            with self.uploads.folder() as folder:
                with field("prompt"):
                    prompt = prompt_from_proto(message, folder.recording)
                files = {pb.FILE_KIND_AUDIO_PROMPT: folder.recording} if prompt.audio else {}
                await self._receive(request_iterator, files, folder)
                progress = Progress(logs.request_id.get())

                def embed(backend: TritonBackend, on_progress: OnProgress, cancel: CancelToken) -> Embeddings:
                    return backend.embed_prompt(prompt, progress=on_progress, cancel=cancel)

                embeddings = await self.engine.in_time(self.engine.call(progress, embed))
        embedding, negative = (pb.Embedding(values=values) for values in embeddings)
        return pb.EmbedPromptResponse(embedding=embedding, negative_embedding=negative)

    async def CreateGeneration(self, request_iterator: AsyncIterator[pb.CreateGenerationRequest], context: Any) -> Any:
        """Accept a long-running generation; its result is kept for a limited time after it has ended."""
        message = await read_first(request_iterator, "options")
        async with self.engine.request(while_down=True):
            owner, request_id = caller.get().name, _uuid(message.request_id)
            options_digest = hashlib.sha256(message.options.SerializeToString(deterministic=True)).hexdigest()
            row = await self.generations.find_request(owner, request_id, options_digest)
            if row is None:
                with self.uploads.folder() as folder:
                    with field("options.options"):
                        self._request(message.options, folder)
                    files = expected_files(message.options, folder)
                    files_digest = await self._receive(request_iterator, files, folder)
                    row = await self.generations.add(
                        owner, request_id, f"{options_digest}:{files_digest}", message.options, list(files.values())
                    )
            return operation(row, self.generations)

    async def WatchGeneration(self, request: pb.WatchGenerationRequest, context: Any) -> None:
        """Stream the events of a generation, from its start."""
        async with self.engine.watching():
            with field("name"):
                row = await self.generations.find(caller.get().name, request.name)
            progress = await self.generations.progress(row)
            await _send_events(progress, context)

    async def _generate(self, progress: Progress, request: GenerationRequest) -> None:
        try:
            with field("options"):
                progress.result = await self.engine.generate(progress, request)
        except Exception as error:  # raised by `Progress.events` in the call, which maps it to a status
            progress.error = error
        progress.changed()

    def _request(self, options: pb.GenerateOptions, folder: UploadFolder) -> GenerationRequest:
        request = request_from_proto(options, folder.video, folder.recording)
        if request.envelope and request.envelope.samples > self.max_duration_s * clip.SAMPLE_RATE_HZ:
            with field("options.envelope"):
                raise MediaTooLarge(f"the envelope is longer than {self.max_duration_s:g} s, the limit; shorten it")
        return request

    async def _receive(
        self, messages: AsyncIterator[Any], files: Mapping[pb.FileKind, Path], folder: UploadFolder
    ) -> str:
        try:
            digest = await asyncio.wait_for(folder.receive(messages, files), self.upload_timeout_s)
        except asyncio.TimeoutError as error:
            raise TimedOut(f"the upload took longer than {self.upload_timeout_s:g} s; send a smaller file") from error
        self.metrics.upload_bytes.inc(sum(file.stat().st_size for file in files.values()))
        return digest


async def _send_events(progress: Progress, context: Any) -> None:
    """Send the events of a generation until its end.

    Raises:
        TimedOut: The caller does not read.
    """
    async for event in progress.events():
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
