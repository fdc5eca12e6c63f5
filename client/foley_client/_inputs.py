"""Builds requests from the arguments of the SDK's methods: files as paths or bytes, options by name."""

import os
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import numpy.typing as npt

from foley import clip
from foley.container import DEFAULT_LIMITS, Limits
from foley.envelope import validate
from foley.media import probe
from foley.options import GenerateOptions
from foley.scratch import temporary_file
from foley_client.curves import read_envelope
from foley_pipeline.paths import file_path
from foley_pipeline.prompt import Prompt
from foley_pipeline.request import EnvelopeInput, GenerationRequest

MediaSource: TypeAlias = str | os.PathLike[str] | bytes
"""A media file: its path, or its content."""

EnvelopeSource: TypeAlias = npt.ArrayLike | str | os.PathLike[str] | EnvelopeInput
"""An envelope: linear RMS at 100 Hz, or the path of a .json or .csv file or of a recording."""


def generation_request(
    video: MediaSource | None,
    envelope: EnvelopeSource | None,
    audio: MediaSource | None,
    options: GenerateOptions | None,
    settings: dict[str, Any],
    limits: Limits = DEFAULT_LIMITS,
) -> GenerationRequest:
    """Build a request. Bytes are written to temporary files, which are removed with the request.

    Args:
        video: The video.
        envelope: The envelope, in place of a predicted one. With a video, it must be as long as the video.
        audio: Recording that is the timbre prompt.
        options: Options.
        settings: Options by name, which override `options`.
        limits: Limits on a video with an envelope, and on the recording of an envelope.

    Raises:
        SettingError: An option is unknown or out of range, or there is neither a video nor an envelope.
        EnvelopeError: The envelope is invalid, or not as long as the video.
        MediaError: The video or the recording of an envelope cannot be read.
    """
    chosen = options.model_dump(exclude_unset=True) if options else {}
    with ExitStack() as files:
        video_path = files.enter_context(media_file(video, "video")) if video is not None else None
        audio_path = files.enter_context(media_file(audio, "audio")) if audio is not None else None
        given = _envelope(envelope, video_path, limits) if envelope is not None else None
        request = GenerationRequest(video_path, given, audio_path, GenerateOptions(**{**chosen, **settings}))
        weakref.finalize(request, files.pop_all().close)
    return request


@contextmanager
def prompt_request(text: str, audio: MediaSource | None, negative_text: str) -> Iterator[Prompt]:
    """Build a prompt; the temporary file for bytes exists while the context is active."""
    with ExitStack() as files:
        path = files.enter_context(media_file(audio, "audio")) if audio is not None else None
        yield Prompt(text, path, negative_text)


@contextmanager
def media_file(source: MediaSource, name: str) -> Iterator[Path]:
    """Provide a media file as a path; bytes are written to a temporary file called `name`."""
    if not isinstance(source, bytes):
        yield file_path(source, name)
        return
    with temporary_file(source, name) as path:
        yield path


def _envelope(envelope: EnvelopeSource, video: Path | None, limits: Limits) -> EnvelopeInput:
    if isinstance(envelope, EnvelopeInput):
        return envelope
    duration_s = probe(video, limits).duration_s if video else None
    if isinstance(envelope, str | os.PathLike):
        return read_envelope(file_path(envelope, "envelope"), duration_s, limits=limits)
    rms = validate(envelope)
    samples = len(rms) * clip.HOP if duration_s is None else round(duration_s * clip.SAMPLE_RATE_HZ)
    return EnvelopeInput(rms, samples)


def source_of_result(video: MediaSource | None) -> Path | bytes | None:
    """Return the video that a result is saved with."""
    return video if isinstance(video, bytes | None) else file_path(video, "video")
