"""Converts requests and results to messages of the public API, and back.

The options of `foley.options.GenerateOptions` correspond to the fields of the same names in the messages
GenerateOptions, Sampling, VideoSource and Prompt. The choices of an option correspond to the values of its enum.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

from foley import clip
from foley.envelope import Floats, validate
from foley.errors import FoleyError, InvalidInput, SettingError
from foley.options import GenerateOptions, OpticalFlow, describe
from foley_pipeline.api import foley_pb2 as pb
from foley_pipeline.prompt import Prompt
from foley_pipeline.request import EnvelopeInput, GenerationRequest
from foley_pipeline.result import GenerationResult, Take

CHUNK_BYTES = 256 * 1024  # chunk of a file or of samples in a message, well below gRPC's limit of 4 MiB

GROUPS = ("prompt", "sampling", "video", "")
"""The fields of pb.GenerateOptions whose messages contain options; "" is pb.GenerateOptions itself."""


def request_to_proto(request: GenerationRequest) -> pb.GenerateOptions:
    """Return the message of a request; its files are sent separately, in chunks."""
    message = pb.GenerateOptions(prompt=pb.Prompt(), sampling=pb.Sampling())
    if given := request.envelope:
        envelope = pb.EnvelopeSource(envelope=pb.Envelope(rms=given.envelope), sample_count=given.samples)
        message.envelope.CopyFrom(envelope)
    else:
        message.video.CopyFrom(pb.VideoSource())
    for group, part in _parts(message):
        _write_options(part, request.options) if group != "prompt" else part.CopyFrom(prompt_to_proto(request.prompt))
    return message


def request_from_proto(message: pb.GenerateOptions, video: Path, recording: Path) -> GenerationRequest:
    """Return the request of a message.

    Args:
        message: The message.
        video: Path at which the video will be stored, if the message announces one.
        recording: Path at which the audio prompt will be stored, if the message announces one.

    Raises:
        InvalidInput: A value is invalid; `field` is the path of the field.
    """
    values: dict[str, Any] = {}
    paths: dict[str, str] = {}
    for group, part in _parts(message):
        for name, value in _read_options(part, group).items():
            values[name], paths[name] = value, f"{group}.{name}".lstrip(".")
    try:
        options = GenerateOptions(**values)
    except SettingError as error:
        error.field = paths.get(error.field or "", error.field)
        raise
    envelope = None
    if message.WhichOneof("source") == "envelope":
        with field("envelope"):
            envelope = _envelope_from_proto(message.envelope)
    elif message.WhichOneof("source") is None:
        with field("source"):
            raise SettingError("there is neither a video nor an envelope; set one of them, `video {}` at least")
    audio = recording if message.prompt.WhichOneof("timbre") == "audio" else None
    return GenerationRequest(None if envelope else video, envelope, audio, options)


def prompt_to_proto(prompt: Prompt) -> pb.Prompt:
    """Return the message of a prompt; its recording is sent separately, in chunks."""
    if prompt.audio:
        return pb.Prompt(audio=pb.AudioPrompt(), negative_text=prompt.negative_text)
    return pb.Prompt(text=prompt.text, negative_text=prompt.negative_text)


def prompt_from_proto(message: pb.Prompt, recording: Path) -> Prompt:
    """Return the prompt of a message.

    Args:
        message: The message.
        recording: Path at which the recording will be stored, if the message announces one.

    Raises:
        SettingError: A value is invalid.
    """
    audio = recording if message.WhichOneof("timbre") == "audio" else None
    return Prompt(message.text, audio, message.negative_text)


def video_to_proto(flow: OpticalFlow | None) -> pb.VideoSource:
    """Return the message that announces a video."""
    message = pb.VideoSource()
    _write_options(message, GenerateOptions(flow=flow))
    return message


def flow_from_proto(message: pb.VideoSource) -> OpticalFlow | None:
    """Return the optical flow that a message requests.

    Raises:
        SettingError: The value is unknown.
    """
    return GenerateOptions(**_read_options(message, "")).flow


def _parts(message: pb.GenerateOptions) -> Iterator[tuple[str, Message]]:
    """Yield the set messages that contain options, each with its field in pb.GenerateOptions."""
    for group in GROUPS:
        if not group:
            yield group, message
        elif message.HasField(group):
            yield group, getattr(message, group)


def _option_fields(message: Message) -> Iterator[FieldDescriptor]:
    return (one for one in message.DESCRIPTOR.fields if one.name in GenerateOptions.model_fields)


def _write_options(message: Message, options: GenerateOptions) -> None:
    """Set the fields of `message` to the options of the same names."""
    for one in _option_fields(message):
        value = getattr(options, one.name)
        if value is None:
            continue
        if one.enum_type:
            setattr(message, one.name, one.enum_type.values_by_name[enum_name(one.enum_type, value)].number)
        elif one.message_type:
            getattr(message, one.name).CopyFrom(pb.NoiseInterval(low=value[0], high=value[1]))
        else:
            setattr(message, one.name, value)


def _read_options(message: Message, group: str) -> dict[str, Any]:
    """Return the options that are set in `message`; errors name its field `group`."""
    found: dict[str, Any] = {}
    for one in _option_fields(message):
        value = getattr(message, one.name)
        if (one.has_presence and not message.HasField(one.name)) or (not one.has_presence and not value):
            continue
        if one.enum_type:
            with field(f"{group}.{one.name}".lstrip(".")):
                value = _choice(one, value)
        elif one.message_type:
            value = (value.low, value.high)
        found[one.name] = value
    return found


def _choice(one: FieldDescriptor, number: int) -> str:
    """Return the choice of an option for the number of an enum value."""
    for choice in choices(one.name):
        if one.enum_type.values_by_name[enum_name(one.enum_type, choice)].number == number:
            return str(choice)
    raise SettingError(f"the enum value {number} is unknown to this server; leave it out, or use a newer server")


def choices(option: str) -> tuple[str, ...]:
    """Return the accepted values of an option; empty for numbers and texts."""
    return next(one.choices for one in describe(GenerateOptions) if one.name == option)


def enum_name(enum: EnumDescriptor, choice: str) -> str:
    """Return the name of an enum value: TIMESTEP_SPACING_LOG_SNR for "log-snr", SAMPLER_DPMPP for "dpm++"."""
    prefix: str = enum.values[0].name.removesuffix("UNSPECIFIED")
    return prefix + choice.upper().replace("-", "_").replace("+", "P")


def take_to_proto(take: Take) -> pb.Take:
    """Return the message of a take; its samples are sent separately, in chunks."""
    return pb.Take(
        sample_rate_hz=clip.SAMPLE_RATE_HZ, sample_count=len(take.waveform), recipe_json=json.dumps(dict(take.recipe))
    )


def result_from_proto(
    generation: pb.Generation, envelope: Floats, sounds: Mapping[int, bytes | bytearray]
) -> GenerationResult:
    """Return the result of a finished generation.

    Args:
        generation: The message.
        envelope: The envelope.
        sounds: Samples of each take, by index: little-endian float32.

    Raises:
        ValueError: The number of samples of a take differs from that in the message.
    """
    timings = {one.stage: one.duration.ToNanoseconds() / 1e9 for one in generation.stage_times}
    takes = []
    for i, message in enumerate(generation.takes):
        samples = np.frombuffer(sounds.get(i, b""), "<f4").astype(np.float32)
        if len(samples) != message.sample_count:
            raise ValueError(f"variation {i} has {len(samples)} of {message.sample_count} samples")
        takes.append(Take(samples, json.loads(message.recipe_json)))
    return GenerationResult(envelope, takes, timings)


def result_to_proto(id: str, result: GenerationResult) -> pb.Generation:
    """Return the message of a finished generation."""
    message = pb.Generation(id=id, takes=[take_to_proto(take) for take in result.takes])
    for stage, seconds in result.timings_s.items():
        time = message.stage_times.add(stage=stage)
        time.duration.FromNanoseconds(round(seconds * 1e9))
    return message


def chunks(content: bytes) -> Iterator[bytes]:
    """Split `content` into chunks of at most `CHUNK_BYTES`."""
    return (content[start : start + CHUNK_BYTES] for start in range(0, len(content), CHUNK_BYTES))


@contextmanager
def field(path: str) -> Iterator[None]:
    """Prepend `path` to the `field` of a `FoleyError` that is raised in the block."""
    try:
        yield
    except FoleyError as error:
        error.field = f"{path}.{error.field}" if error.field else path
        raise


def _envelope_from_proto(message: pb.EnvelopeSource) -> EnvelopeInput:
    with field("envelope.rms"):
        envelope: Floats = validate(message.envelope.rms)
    with field("sample_count"):
        longest = len(envelope) * clip.HOP
        samples = message.sample_count or longest
        if not longest - clip.HOP < samples <= longest:
            raise InvalidInput(
                f"{samples} samples do not end in the last of {len(envelope)} frames; set {longest}, or leave it out"
            )
        return EnvelopeInput(envelope, samples)
