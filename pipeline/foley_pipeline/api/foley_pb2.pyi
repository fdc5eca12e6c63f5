import datetime

from google.api import field_behavior_pb2 as _field_behavior_pb2
from google.longrunning import operations_pb2 as _operations_pb2
from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FileKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FILE_KIND_UNSPECIFIED: _ClassVar[FileKind]
    FILE_KIND_VIDEO: _ClassVar[FileKind]
    FILE_KIND_AUDIO_PROMPT: _ClassVar[FileKind]

class Sampler(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SAMPLER_UNSPECIFIED: _ClassVar[Sampler]
    SAMPLER_DDIM: _ClassVar[Sampler]
    SAMPLER_DPMPP: _ClassVar[Sampler]

class TimestepSpacing(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TIMESTEP_SPACING_UNSPECIFIED: _ClassVar[TimestepSpacing]
    TIMESTEP_SPACING_UNIFORM: _ClassVar[TimestepSpacing]
    TIMESTEP_SPACING_KARRAS: _ClassVar[TimestepSpacing]
    TIMESTEP_SPACING_LOG_SNR: _ClassVar[TimestepSpacing]

class Profile(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PROFILE_UNSPECIFIED: _ClassVar[Profile]
    PROFILE_QUALITY: _ClassVar[Profile]
    PROFILE_BALANCED: _ClassVar[Profile]
    PROFILE_FAST: _ClassVar[Profile]

class OpticalFlow(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OPTICAL_FLOW_UNSPECIFIED: _ClassVar[OpticalFlow]
    OPTICAL_FLOW_DEFAULT: _ClassVar[OpticalFlow]
    OPTICAL_FLOW_WARM: _ClassVar[OpticalFlow]
    OPTICAL_FLOW_DIS: _ClassVar[OpticalFlow]

class Loudness(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LOUDNESS_UNSPECIFIED: _ClassVar[Loudness]
    LOUDNESS_LEVEL: _ClassVar[Loudness]
    LOUDNESS_FOLLOW: _ClassVar[Loudness]
    LOUDNESS_PEAK: _ClassVar[Loudness]

class GenerationState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    GENERATION_STATE_UNSPECIFIED: _ClassVar[GenerationState]
    GENERATION_STATE_QUEUED: _ClassVar[GenerationState]
    GENERATION_STATE_RUNNING: _ClassVar[GenerationState]
    GENERATION_STATE_SUCCEEDED: _ClassVar[GenerationState]
    GENERATION_STATE_FAILED: _ClassVar[GenerationState]
    GENERATION_STATE_CANCELLED: _ClassVar[GenerationState]
FILE_KIND_UNSPECIFIED: FileKind
FILE_KIND_VIDEO: FileKind
FILE_KIND_AUDIO_PROMPT: FileKind
SAMPLER_UNSPECIFIED: Sampler
SAMPLER_DDIM: Sampler
SAMPLER_DPMPP: Sampler
TIMESTEP_SPACING_UNSPECIFIED: TimestepSpacing
TIMESTEP_SPACING_UNIFORM: TimestepSpacing
TIMESTEP_SPACING_KARRAS: TimestepSpacing
TIMESTEP_SPACING_LOG_SNR: TimestepSpacing
PROFILE_UNSPECIFIED: Profile
PROFILE_QUALITY: Profile
PROFILE_BALANCED: Profile
PROFILE_FAST: Profile
OPTICAL_FLOW_UNSPECIFIED: OpticalFlow
OPTICAL_FLOW_DEFAULT: OpticalFlow
OPTICAL_FLOW_WARM: OpticalFlow
OPTICAL_FLOW_DIS: OpticalFlow
LOUDNESS_UNSPECIFIED: Loudness
LOUDNESS_LEVEL: Loudness
LOUDNESS_FOLLOW: Loudness
LOUDNESS_PEAK: Loudness
GENERATION_STATE_UNSPECIFIED: GenerationState
GENERATION_STATE_QUEUED: GenerationState
GENERATION_STATE_RUNNING: GenerationState
GENERATION_STATE_SUCCEEDED: GenerationState
GENERATION_STATE_FAILED: GenerationState
GENERATION_STATE_CANCELLED: GenerationState

class GenerateRequest(_message.Message):
    __slots__ = ("options", "chunk")
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    options: GenerateOptions
    chunk: FileChunk
    def __init__(self, options: _Optional[_Union[GenerateOptions, _Mapping]] = ..., chunk: _Optional[_Union[FileChunk, _Mapping]] = ...) -> None: ...

class CreateGenerationRequest(_message.Message):
    __slots__ = ("options", "chunk")
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    options: CreateGenerationOptions
    chunk: FileChunk
    def __init__(self, options: _Optional[_Union[CreateGenerationOptions, _Mapping]] = ..., chunk: _Optional[_Union[FileChunk, _Mapping]] = ...) -> None: ...

class CreateGenerationOptions(_message.Message):
    __slots__ = ("request_id", "options")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    options: GenerateOptions
    def __init__(self, request_id: _Optional[str] = ..., options: _Optional[_Union[GenerateOptions, _Mapping]] = ...) -> None: ...

class GenerateOptions(_message.Message):
    __slots__ = ("prompt", "sampling", "video", "envelope", "loudness", "variations")
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    VIDEO_FIELD_NUMBER: _ClassVar[int]
    ENVELOPE_FIELD_NUMBER: _ClassVar[int]
    LOUDNESS_FIELD_NUMBER: _ClassVar[int]
    VARIATIONS_FIELD_NUMBER: _ClassVar[int]
    prompt: Prompt
    sampling: Sampling
    video: VideoSource
    envelope: EnvelopeSource
    loudness: Loudness
    variations: int
    def __init__(self, prompt: _Optional[_Union[Prompt, _Mapping]] = ..., sampling: _Optional[_Union[Sampling, _Mapping]] = ..., video: _Optional[_Union[VideoSource, _Mapping]] = ..., envelope: _Optional[_Union[EnvelopeSource, _Mapping]] = ..., loudness: _Optional[_Union[Loudness, str]] = ..., variations: _Optional[int] = ...) -> None: ...

class VideoSource(_message.Message):
    __slots__ = ("flow",)
    FLOW_FIELD_NUMBER: _ClassVar[int]
    flow: OpticalFlow
    def __init__(self, flow: _Optional[_Union[OpticalFlow, str]] = ...) -> None: ...

class EnvelopeSource(_message.Message):
    __slots__ = ("envelope", "sample_count")
    ENVELOPE_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_COUNT_FIELD_NUMBER: _ClassVar[int]
    envelope: Envelope
    sample_count: int
    def __init__(self, envelope: _Optional[_Union[Envelope, _Mapping]] = ..., sample_count: _Optional[int] = ...) -> None: ...

class Prompt(_message.Message):
    __slots__ = ("text", "audio", "negative_text")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    AUDIO_FIELD_NUMBER: _ClassVar[int]
    NEGATIVE_TEXT_FIELD_NUMBER: _ClassVar[int]
    text: str
    audio: AudioPrompt
    negative_text: str
    def __init__(self, text: _Optional[str] = ..., audio: _Optional[_Union[AudioPrompt, _Mapping]] = ..., negative_text: _Optional[str] = ...) -> None: ...

class AudioPrompt(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class FileChunk(_message.Message):
    __slots__ = ("kind", "data")
    KIND_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    kind: FileKind
    data: bytes
    def __init__(self, kind: _Optional[_Union[FileKind, str]] = ..., data: _Optional[bytes] = ...) -> None: ...

class Sampling(_message.Message):
    __slots__ = ("profile", "sampler", "steps", "guidance", "eta", "seed", "timestep_spacing", "guidance_interval")
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    SAMPLER_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    GUIDANCE_FIELD_NUMBER: _ClassVar[int]
    ETA_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    TIMESTEP_SPACING_FIELD_NUMBER: _ClassVar[int]
    GUIDANCE_INTERVAL_FIELD_NUMBER: _ClassVar[int]
    profile: Profile
    sampler: Sampler
    steps: int
    guidance: float
    eta: float
    seed: int
    timestep_spacing: TimestepSpacing
    guidance_interval: NoiseInterval
    def __init__(self, profile: _Optional[_Union[Profile, str]] = ..., sampler: _Optional[_Union[Sampler, str]] = ..., steps: _Optional[int] = ..., guidance: _Optional[float] = ..., eta: _Optional[float] = ..., seed: _Optional[int] = ..., timestep_spacing: _Optional[_Union[TimestepSpacing, str]] = ..., guidance_interval: _Optional[_Union[NoiseInterval, _Mapping]] = ...) -> None: ...

class NoiseInterval(_message.Message):
    __slots__ = ("low", "high")
    LOW_FIELD_NUMBER: _ClassVar[int]
    HIGH_FIELD_NUMBER: _ClassVar[int]
    low: float
    high: float
    def __init__(self, low: _Optional[float] = ..., high: _Optional[float] = ...) -> None: ...

class Envelope(_message.Message):
    __slots__ = ("rms",)
    RMS_FIELD_NUMBER: _ClassVar[int]
    rms: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, rms: _Optional[_Iterable[float]] = ...) -> None: ...

class Embedding(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, values: _Optional[_Iterable[float]] = ...) -> None: ...

class GenerateEvent(_message.Message):
    __slots__ = ("accepted", "envelope_ready", "progress", "audio", "finished")
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    ENVELOPE_READY_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    AUDIO_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    accepted: Accepted
    envelope_ready: EnvelopeReady
    progress: StageProgress
    audio: AudioChunk
    finished: Generation
    def __init__(self, accepted: _Optional[_Union[Accepted, _Mapping]] = ..., envelope_ready: _Optional[_Union[EnvelopeReady, _Mapping]] = ..., progress: _Optional[_Union[StageProgress, _Mapping]] = ..., audio: _Optional[_Union[AudioChunk, _Mapping]] = ..., finished: _Optional[_Union[Generation, _Mapping]] = ...) -> None: ...

class Accepted(_message.Message):
    __slots__ = ("id", "queue_position")
    ID_FIELD_NUMBER: _ClassVar[int]
    QUEUE_POSITION_FIELD_NUMBER: _ClassVar[int]
    id: str
    queue_position: int
    def __init__(self, id: _Optional[str] = ..., queue_position: _Optional[int] = ...) -> None: ...

class EnvelopeReady(_message.Message):
    __slots__ = ("envelope",)
    ENVELOPE_FIELD_NUMBER: _ClassVar[int]
    envelope: Envelope
    def __init__(self, envelope: _Optional[_Union[Envelope, _Mapping]] = ...) -> None: ...

class StageProgress(_message.Message):
    __slots__ = ("done_count", "total_count", "stage")
    DONE_COUNT_FIELD_NUMBER: _ClassVar[int]
    TOTAL_COUNT_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    done_count: int
    total_count: int
    stage: str
    def __init__(self, done_count: _Optional[int] = ..., total_count: _Optional[int] = ..., stage: _Optional[str] = ...) -> None: ...

class AudioChunk(_message.Message):
    __slots__ = ("variation", "samples")
    VARIATION_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    variation: int
    samples: bytes
    def __init__(self, variation: _Optional[int] = ..., samples: _Optional[bytes] = ...) -> None: ...

class Generation(_message.Message):
    __slots__ = ("id", "takes", "stage_times", "expire_time")
    ID_FIELD_NUMBER: _ClassVar[int]
    TAKES_FIELD_NUMBER: _ClassVar[int]
    STAGE_TIMES_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    id: str
    takes: _containers.RepeatedCompositeFieldContainer[Take]
    stage_times: _containers.RepeatedCompositeFieldContainer[StageTime]
    expire_time: _timestamp_pb2.Timestamp
    def __init__(self, id: _Optional[str] = ..., takes: _Optional[_Iterable[_Union[Take, _Mapping]]] = ..., stage_times: _Optional[_Iterable[_Union[StageTime, _Mapping]]] = ..., expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class Take(_message.Message):
    __slots__ = ("sample_rate_hz", "sample_count", "recipe_json")
    SAMPLE_RATE_HZ_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_COUNT_FIELD_NUMBER: _ClassVar[int]
    RECIPE_JSON_FIELD_NUMBER: _ClassVar[int]
    sample_rate_hz: int
    sample_count: int
    recipe_json: str
    def __init__(self, sample_rate_hz: _Optional[int] = ..., sample_count: _Optional[int] = ..., recipe_json: _Optional[str] = ...) -> None: ...

class StageTime(_message.Message):
    __slots__ = ("stage", "duration")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    DURATION_FIELD_NUMBER: _ClassVar[int]
    stage: str
    duration: _duration_pb2.Duration
    def __init__(self, stage: _Optional[str] = ..., duration: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class GenerationMetadata(_message.Message):
    __slots__ = ("request_id", "state", "queue_position", "progress", "create_time", "start_time", "end_time")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    QUEUE_POSITION_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    state: GenerationState
    queue_position: int
    progress: StageProgress
    create_time: _timestamp_pb2.Timestamp
    start_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    def __init__(self, request_id: _Optional[str] = ..., state: _Optional[_Union[GenerationState, str]] = ..., queue_position: _Optional[int] = ..., progress: _Optional[_Union[StageProgress, _Mapping]] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class WatchGenerationRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class PredictEnvelopeRequest(_message.Message):
    __slots__ = ("video", "chunk")
    VIDEO_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    video: VideoSource
    chunk: FileChunk
    def __init__(self, video: _Optional[_Union[VideoSource, _Mapping]] = ..., chunk: _Optional[_Union[FileChunk, _Mapping]] = ...) -> None: ...

class PredictEnvelopeResponse(_message.Message):
    __slots__ = ("envelope", "video_duration")
    ENVELOPE_FIELD_NUMBER: _ClassVar[int]
    VIDEO_DURATION_FIELD_NUMBER: _ClassVar[int]
    envelope: Envelope
    video_duration: _duration_pb2.Duration
    def __init__(self, envelope: _Optional[_Union[Envelope, _Mapping]] = ..., video_duration: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class EmbedPromptRequest(_message.Message):
    __slots__ = ("prompt", "chunk")
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    prompt: Prompt
    chunk: FileChunk
    def __init__(self, prompt: _Optional[_Union[Prompt, _Mapping]] = ..., chunk: _Optional[_Union[FileChunk, _Mapping]] = ...) -> None: ...

class EmbedPromptResponse(_message.Message):
    __slots__ = ("embedding", "negative_embedding")
    EMBEDDING_FIELD_NUMBER: _ClassVar[int]
    NEGATIVE_EMBEDDING_FIELD_NUMBER: _ClassVar[int]
    embedding: Embedding
    negative_embedding: Embedding
    def __init__(self, embedding: _Optional[_Union[Embedding, _Mapping]] = ..., negative_embedding: _Optional[_Union[Embedding, _Mapping]] = ...) -> None: ...
