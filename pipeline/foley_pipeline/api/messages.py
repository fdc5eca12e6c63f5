"""Jobs and what comes of them, as messages of the public API and back."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from foley import clip
from foley.envelope import Floats, validate
from foley.errors import FoleyError, InvalidInput, SettingError
from foley.loudness import Loudness
from foley.profiles import ProfileName
from foley.sampler import SamplerName, Sampling
from foley.schedule import Spacing
from foley.stages import FlowMethod
from foley_pipeline.api import foley_pb2 as pb
from foley_pipeline.foley import Take, override, vary
from foley_pipeline.job import Curve, Job
from foley_pipeline.prompt import Prompt

CHUNK_BYTES = 256 * 1024  # of a file or a sound in a message: far below gRPC's 4 MiB

_PROFILES: Mapping[ProfileName, pb.Profile] = {
    "quality": pb.PROFILE_QUALITY,
    "balanced": pb.PROFILE_BALANCED,
    "fast": pb.PROFILE_FAST,
}
_FLOWS: Mapping[FlowMethod, pb.OpticalFlow] = {
    "exact": pb.OPTICAL_FLOW_EXACT,
    "warm": pb.OPTICAL_FLOW_WARM,
    "dis": pb.OPTICAL_FLOW_DIS,
}
_LEVELS: Mapping[Loudness, pb.Loudness] = {
    "level": pb.LOUDNESS_LEVEL,
    "follow": pb.LOUDNESS_FOLLOW,
    "peak": pb.LOUDNESS_PEAK,
}
_SAMPLERS: Mapping[SamplerName, pb.Sampler] = {
    "ddim": pb.SAMPLER_DDIM,
    "dpm++": pb.SAMPLER_DPM_SOLVER,
}
_SPACINGS: Mapping[Spacing, pb.Spacing] = {
    "uniform": pb.SPACING_UNIFORM,
    "karras": pb.SPACING_KARRAS,
    "log-snr": pb.SPACING_LOG_SNR,
}

# field of Sampling -> field of the message, for those that are the same on both sides
_NUMBERS = {"steps": "step_count", "guidance": "guidance", "eta": "eta", "seed": "seed"}

Word = TypeVar("Word", bound=str)


def options_of(job: Job) -> pb.GenerateOptions:
    """The message that asks for `job`; its files follow in chunks."""
    options = pb.GenerateOptions(
        prompt=prompt_message(job.prompt),
        sampling=_sampling_message(job),
        loudness=_LEVELS[job.level],
        variation_count=job.variations,
    )
    if isinstance(job.source, Curve):
        options.envelope.CopyFrom(
            pb.EnvelopeSource(envelope=pb.Envelope(rms=job.source.envelope), sample_count=job.source.samples)
        )
    else:
        options.video.CopyFrom(video_message(job.flow))
    return options


def job_of(options: pb.GenerateOptions, video: Path, recording: Path) -> Job:
    """The job that a message asks for; `video` and `recording` are where the files that it announces will be.

    Raises:
        InvalidInput: with the path of the field that is wrong.
    """
    with field("prompt"):
        prompt = prompt_of(options.prompt, recording)
    sampling = _sampling_of(options.sampling)
    variations = options.variation_count or 1
    with field("variation_count"):
        vary(Sampling(seed=sampling.get("seed", 0)), variations)
    source: Path | Curve = video
    if options.WhichOneof("source") == "envelope":
        with field("envelope"):
            source = _curve_of(options.envelope)
    elif options.WhichOneof("source") is None:
        with field("source"):
            raise SettingError("there is neither a video nor an envelope; set one of them, `video {}` at least")
    with field("video"):
        flow = flow_of(options.video)
    return Job(
        source,
        prompt,
        _word(_PROFILES, options.sampling.profile, "sampling.profile") or "balanced",
        flow,
        sampling,
        variations,
        _word(_LEVELS, options.loudness, "loudness") or "level",
    )


def prompt_message(prompt: Prompt) -> pb.Prompt:
    """The message of a prompt; its recording follows in chunks."""
    if prompt.audio:
        return pb.Prompt(audio=pb.AudioPrompt(), negative_text=prompt.negative_text)
    return pb.Prompt(text=prompt.text, negative_text=prompt.negative_text)


def prompt_of(message: pb.Prompt, recording: Path) -> Prompt:
    """The prompt of a message. Raises SettingError."""
    audio = recording if message.WhichOneof("like") == "audio" else None
    return Prompt(message.text, audio, message.negative_text)


def video_message(flow: FlowMethod | None) -> pb.VideoSource:
    """The message that announces a video."""
    return pb.VideoSource(optical_flow=_FLOWS[flow] if flow else pb.OPTICAL_FLOW_UNSPECIFIED)


def flow_of(message: pb.VideoSource) -> FlowMethod | None:
    """The optical flow that a message asks for. Raises SettingError."""
    return _word(_FLOWS, message.optical_flow, "optical_flow")


def take_message(take: Take) -> pb.Take:
    """What is said about a take; its samples go in chunks."""
    return pb.Take(
        sample_rate_hz=clip.SAMPLE_RATE_HZ, sample_count=len(take.waveform), recipe_json=json.dumps(take.recipe)
    )


def takes_of(generation: pb.Generation, sounds: Mapping[int, bytes | bytearray]) -> list[Take]:
    """The takes of a finished generation and the samples that came before it.

    Raises:
        ValueError: samples are missing, or there are too many.
    """
    timings = {one.stage: one.duration.ToNanoseconds() / 1e9 for one in generation.stage_times}
    takes = []
    for i, message in enumerate(generation.takes):
        samples = np.frombuffer(sounds.get(i, b""), "<f4").astype(np.float32)
        if len(samples) != message.sample_count:
            raise ValueError(f"sound {i} came with {len(samples)} of {message.sample_count} samples")
        takes.append(Take(samples, json.loads(message.recipe_json), timings))
    return takes


def generation_message(id: str, takes: list[Take]) -> pb.Generation:
    """What is said about a finished generation."""
    message = pb.Generation(id=id, takes=[take_message(take) for take in takes])
    for stage, seconds in (takes[0].timings_s if takes else {}).items():
        time = message.stage_times.add(stage=stage)
        time.duration.FromNanoseconds(round(seconds * 1e9))
    return message


def pieces(content: bytes) -> Iterator[bytes]:
    """`content` in pieces that fit into a message."""
    return (content[start : start + CHUNK_BYTES] for start in range(0, len(content), CHUNK_BYTES))


@contextmanager
def field(path: str) -> Iterator[None]:
    """An error that is raised inside blames the field at `path`, or the one in there that it names already."""
    try:
        yield
    except FoleyError as error:
        error.field = f"{path}.{error.field}" if error.field else path
        raise


def _sampling_message(job: Job) -> pb.Sampling:
    chosen = {key: value for key, value in job.sampling.items() if value is not None}
    message = pb.Sampling(
        profile=_PROFILES[job.profile],
        sampler=_SAMPLERS[chosen["sampler"]] if "sampler" in chosen else pb.SAMPLER_UNSPECIFIED,
        spacing=_SPACINGS[chosen["spacing"]] if "spacing" in chosen else pb.SPACING_UNSPECIFIED,
        **{name: chosen[key] for key, name in _NUMBERS.items() if key in chosen},
    )
    if "guidance_interval" in chosen:
        low, high = chosen["guidance_interval"]
        message.guidance_interval.CopyFrom(pb.NoiseInterval(low=low, high=high))
    return message


def _sampling_of(message: pb.Sampling) -> dict[str, Any]:
    """The fields that are set; each was tried by itself, so that an error names it."""
    chosen: dict[str, Any] = {key: getattr(message, name) for key, name in _NUMBERS.items() if message.HasField(name)}
    if message.HasField("guidance_interval"):
        chosen["guidance_interval"] = (message.guidance_interval.low, message.guidance_interval.high)
    if sampler := _word(_SAMPLERS, message.sampler, "sampling.sampler"):
        chosen["sampler"] = sampler
    if spacing := _word(_SPACINGS, message.spacing, "sampling.spacing"):
        chosen["spacing"] = spacing
    for key, value in chosen.items():
        with field(f"sampling.{_NUMBERS.get(key, key)}"):
            override(Sampling(sampler="ddim" if key == "eta" else "dpm++"), {key: value})
    with field("sampling"):
        override(Sampling(sampler="ddim" if chosen.get("eta") else "dpm++"), chosen)
    return chosen


def _curve_of(message: pb.EnvelopeSource) -> Curve:
    with field("envelope.rms"):
        envelope: Floats = validate(message.envelope.rms)
    with field("sample_count"):
        longest = len(envelope) * clip.HOP
        samples = message.sample_count or longest
        if not longest - clip.HOP < samples <= longest:
            raise InvalidInput(
                f"{samples} samples do not end in the last of {len(envelope)} frames; give {longest}, or nothing"
            )
        return Curve(envelope, samples)


def _word(table: Mapping[Word, int], number: int, path: str) -> Word | None:
    """The word that an enum's number stands for, None for UNSPECIFIED."""
    if number == 0:
        return None
    for word, value in table.items():
        if value == number:
            return word
    with field(path):
        raise SettingError(f"{number} means nothing to this server; leave it out, or use a newer server")
