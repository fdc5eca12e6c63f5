"""The work of each kind of job: from its request and files to its result."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from foley.manifest import SamplingDefaults
from foley_pipeline.api import foley_pb2 as pb
from foley_pipeline.api.messages import flow_from_proto, prompt_from_proto, request_from_proto, result_to_proto
from foley_pipeline.cancellation import CancelToken
from foley_pipeline.progress import OnProgress
from foley_pipeline.triton_backend import TritonBackend
from foley_server.jobs import cost
from foley_server.jobs.progress import ENVELOPE
from foley_server.jobs.store import Kind
from foley_server.jobs.upload import UploadFolder


@dataclass(frozen=True)
class Result:
    """What a successful job leaves behind.

    Attributes:
        message: Serialised message for the caller: Generation, PredictEnvelopeResponse or EmbedPromptResponse.
        files: Content of files, by name.
    """

    message: bytes
    files: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Work:
    """The work of one job.

    Attributes:
        files: Paths at which it expects its files, by kind, in upload order.
        cost: Returns the estimated cost in denoiser rows, given the bundle's defaults and the maximum number of steps;
            raises `SettingError` for more steps, or for options that conflict.
        rows_per_step: Returns the rows of one denoising step, given the bundle's defaults.
        run: Does the work, in any thread.
    """

    files: Mapping[pb.FileKind, Path]
    cost: Callable[[SamplingDefaults, int], int]
    rows_per_step: Callable[[SamplingDefaults], int]
    run: Callable[[TritonBackend, OnProgress, CancelToken], Result]


def prepare(kind: Kind, request: bytes, folder: UploadFolder) -> Work:
    """Return the work of a job.

    Args:
        kind: Kind of the job.
        request: Serialised request: GenerateOptions, VideoSource or Prompt.
        folder: Folder in which its files will be.

    Raises:
        InvalidInput: The request is not valid; `field` names the field of the message.
    """
    return _PREPARE[kind](request, folder)


def _generate(request: bytes, folder: UploadFolder) -> Work:
    message = pb.GenerateOptions.FromString(request)
    wanted = request_from_proto(message, folder.video, folder.recording)
    files = {}
    if wanted.video:
        files[pb.FILE_KIND_VIDEO] = wanted.video
    if wanted.audio:
        files[pb.FILE_KIND_AUDIO_PROMPT] = wanted.audio

    def run(backend: TritonBackend, progress: OnProgress, cancel: CancelToken) -> Result:
        result = backend.generate(wanted, progress=progress, cancel=cancel)
        takes = {f"take-{i}": np.asarray(take.waveform, "<f4").tobytes() for i, take in enumerate(result.takes)}
        envelope = {ENVELOPE: np.asarray(result.envelope, "<f4").tobytes()}
        return Result(result_to_proto("", result).SerializeToString(), envelope | takes)

    return Work(
        files,
        lambda defaults, max_steps: cost.estimate(wanted, defaults, max_steps),
        lambda defaults: cost.rows_per_step(wanted.options, defaults),
        run,
    )


def _predict_envelope(request: bytes, folder: UploadFolder) -> Work:
    flow = flow_from_proto(pb.VideoSource.FromString(request))

    def run(backend: TritonBackend, progress: OnProgress, cancel: CancelToken) -> Result:
        video = backend.loader.video(folder.video)
        envelope = backend.predict_envelope(video, flow=flow, progress=progress, cancel=cancel)
        response = pb.PredictEnvelopeResponse(envelope=pb.Envelope(rms=envelope))
        response.video_duration.FromNanoseconds(round(video.info.duration_s * 1e9))
        return Result(response.SerializeToString())

    return Work({pb.FILE_KIND_VIDEO: folder.video}, lambda *_: cost.ENVELOPE_ROWS, lambda _: 0, run)


def _embed_prompt(request: bytes, folder: UploadFolder) -> Work:
    prompt = prompt_from_proto(pb.Prompt.FromString(request), folder.recording)

    def run(backend: TritonBackend, progress: OnProgress, cancel: CancelToken) -> Result:
        embeddings = backend.embed_prompt(prompt, progress=progress, cancel=cancel)
        embedding, negative = (pb.Embedding(values=values) for values in embeddings)
        return Result(pb.EmbedPromptResponse(embedding=embedding, negative_embedding=negative).SerializeToString())

    files = {pb.FILE_KIND_AUDIO_PROMPT: prompt.audio} if prompt.audio else {}
    return Work(files, lambda *_: cost.EMBEDDING_ROWS, lambda _: 0, run)


_PREPARE: Mapping[Kind, Callable[[bytes, UploadFolder], Work]] = {
    "generate": _generate,
    "envelope": _predict_envelope,
    "embedding": _embed_prompt,
}
