"""The options of a request, with their types, ranges, defaults and help texts.

The command line, manifest rows, the messages of the gRPC API, the tensor of the served model `generate`, the studio's
form and docs/options.md are derived from these models; tests/unit/test_options.py compares all of them. To add an
option, add a field here, use it where it takes effect, and add it to proto/foley/v1/foley.proto.
"""

import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from foley.clip import SAMPLE_RATE_HZ
from foley.errors import SettingError
from foley.sound_format import HIGHEST_RATE_HZ, LOWEST_RATE_HZ, BitDepth, SoundFormat

Profile = Literal["quality", "balanced", "fast"]
OpticalFlow = Literal["default", "warm", "dis"]
Sampler = Literal["ddim", "dpm++"]
TimestepSpacing = Literal["uniform", "karras", "log-snr"]
Loudness = Literal["level", "follow", "peak"]
SourceAudio = Literal["replace", "mix", "keep"]
EnvelopeFilter = Literal["none", "official"]

MAX_SIGMA = 100.0
"""Upper limit for sigmas in options; the sigmas of the schedule are between 0.04 and 14."""
MAX_SHOWN = 60  # characters of a wrong value in a message
ALL_SIGMAS = (0.0, MAX_SIGMA)
MAX_SEED = 2**64 - 1
RANDOM_SEED = -1
"""The seed in options that stands for a random one, which `GenerateOptions.with_drawn_seed` draws."""

_Model = TypeVar("_Model", bound="Options")


class Options(BaseModel):
    """Base class of the option groups: immutable, without extra fields, and with user-facing errors.

    Raises:
        SettingError: A value is out of range, an option is unknown, or two options conflict. `field` names the first
            invalid option.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="wrap")
    @classmethod
    def _translate_errors(cls: type[_Model], values: Any, handler: ModelWrapValidatorHandler[_Model]) -> _Model:
        try:
            return handler(values)
        except ValidationError as error:
            raise setting_error(error, cls) from error


class PromptOptions(Options):
    """Options of the prompt."""

    text: str = Field(default="", max_length=2_000, description="Text prompt: the sound to generate. Empty: no prompt.")
    negative_text: str = Field(
        default="", max_length=2_000, description="Negative text prompt: the sound to avoid. Requires guidance above 1."
    )


class SamplingOptions(Options):
    """Options of the sampling. None selects the profile's value, else the bundle's."""

    seed: int = Field(
        default=0,
        ge=RANDOM_SEED,
        le=MAX_SEED,
        description="Seed of the noise. The same seed gives the same sound. -1 or `random`: a random seed, which the "
        "recipe names.",
    )
    profile: Profile = Field(
        default="balanced",
        description="Trade-off between quality and speed. quality: 50 steps. balanced: the defaults of the bundle. "
        "fast: 10 steps, guidance for half of them, and RAFT with few updates. Other options override the profile.",
    )
    sampler: Sampler | None = Field(default=None, description="ddim: the official sampler. dpm++: DPM-Solver++ 2M.")
    steps: int | None = Field(default=None, ge=1, le=1_000, description="Number of denoising steps.")
    timestep_spacing: TimestepSpacing | None = Field(
        default=None,
        description="Spacing of the noise levels of dpm++. uniform: in timesteps. karras: Karras et al. 2022. log-snr: "
        "in log-SNR.",
    )
    eta: float | None = Field(
        default=None,
        ge=0.0,
        le=1.0,
        description="Share of new noise in each step of ddim, 0 to 1. The official setting is 1.",
    )
    guidance: float | None = Field(
        default=None,
        ge=1.0,
        le=100.0,
        description="Scale of classifier-free guidance. 1: no guidance, at half the cost.",
    )
    guidance_interval: tuple[float, float] | None = Field(
        default=None,
        description="Lowest and highest sigma at which guidance is applied (Kynkäänniemi et al. 2024). Sigma falls "
        "from 14 to 0.04. Steps outside the interval cost half.",
    )

    @model_validator(mode="before")
    @classmethod
    def _parse_text(cls, values: Any) -> Any:
        """Accept what people write in a cell of a table: "0.3 100" for a pair, `random` for a seed."""
        if not isinstance(values, Mapping):
            return values
        values = dict(values)
        if isinstance(pair := values.get("guidance_interval"), str):
            values["guidance_interval"] = pair.split()
        if str(values.get("seed")).lower() == "random":
            values["seed"] = RANDOM_SEED
        return values

    @model_validator(mode="after")
    def _check_combinations(self) -> "SamplingOptions":
        if self.guidance_interval is not None:
            low, high = self.guidance_interval
            if not 0.0 <= low <= high <= MAX_SIGMA:
                message = f"guidance_interval is {low:g} to {high:g}: use two values from 0 to 100, the lower one first"
                raise _blame("guidance_interval", SettingError(message))
        if self.sampler == "dpm++" and self.eta:
            raise _blame("eta", SettingError("eta applies only to the sampler ddim; omit it with dpm++"))
        if self.sampler == "ddim" and self.timestep_spacing not in (None, "uniform"):
            message = "timestep_spacing applies only to the sampler dpm++; omit it with ddim"
            raise _blame("timestep_spacing", SettingError(message))
        return self


class GenerateOptions(SamplingOptions, PromptOptions):
    """Options of a generation, local or through the API."""

    flow: OpticalFlow | None = Field(
        default=None,
        description="Optical flow method. default: that of the bundle. Alternatives to RAFT: warm starts from the "
        "previous flow and needs few updates; dis is OpenCV's DIS.",
    )
    variations: int = Field(default=1, ge=1, le=16, description="Number of sounds to generate, with consecutive seeds.")
    loudness: Loudness = Field(
        default="level",
        description="Loudness of the sound. level: match the mean level of the envelope. follow: match the envelope in "
        "each frame. peak: the official normalisation to the peak.",
    )

    @model_validator(mode="after")
    def _check_seeds(self) -> "GenerateOptions":
        if self.seed + self.variations - 1 > MAX_SEED:
            raise _blame(
                "seed",
                SettingError(
                    f"seed is {self.seed}: with {self.variations} variations, use at most 2^64 - {self.variations}"
                ),
            )
        return self

    def with_drawn_seed(self) -> "GenerateOptions":
        """Return these options with a seed from 0, drawn if it is `RANDOM_SEED`.

        Drawn seeds have at most 32 bits: people retype them, and spreadsheets and JavaScript round larger numbers.
        """
        return self.model_copy(update={"seed": secrets.randbits(32)}) if self.seed == RANDOM_SEED else self


class FileOptions(GenerateOptions):
    """Options of a generation that reads and writes files: those of the command line and of a manifest row."""

    source_audio: SourceAudio = Field(
        default="replace",
        description="What happens to the audio of the video. replace: it is dropped. mix: it is mixed with the new "
        "sound. keep: all its tracks follow the new one.",
    )
    envelope_filter: EnvelopeFilter = Field(
        default="none",
        description="Low-pass filter for an envelope that is measured on a recording. official: the zero-phase filter "
        "of the official RMS2Sound; requires SciPy.",
    )
    sample_rate: int = Field(
        default=SAMPLE_RATE_HZ,
        ge=LOWEST_RATE_HZ,
        le=HIGHEST_RATE_HZ,
        description="Sample rate of the sound in the file, in Hz. Post-production uses 48000. The sound is made at "
        "16000 Hz, so it has no frequencies above 8 kHz at any rate.",
    )
    bit_depth: BitDepth = Field(
        default="16",
        description="Sample format of the sound in a .wav or .flac file, or in a track that is not compressed with "
        "losses. 16, 24: bits of an integer. 32f: floating point, not in .flac.",
    )

    @field_validator("bit_depth", mode="before")
    @classmethod
    def _to_text(cls, value: Any) -> Any:
        """Accept the number 16 or 24, as in JSON."""
        return str(value) if isinstance(value, int) else value

    @property
    def sound(self) -> SoundFormat:
        """The sample format of the sound in a file."""
        return SoundFormat(self.sample_rate, self.bit_depth)


@dataclass(frozen=True)
class Option:
    """Description of one option, for documentation and forms.

    Attributes:
        name: Name of the field.
        help: Help text.
        default: Default value; None: the profile's or the bundle's.
        choices: Accepted values; empty for numbers and texts.
        low: Lower limit of a number, or None.
        high: Upper limit of a number or of the length of a text, or None.
        is_pair: Whether the value is two numbers.
    """

    name: str
    help: str
    default: Any
    choices: tuple[str, ...]
    low: float | None
    high: float | None
    is_pair: bool

    @property
    def values(self) -> str:
        """Accepted values, as text."""
        if self.choices:
            return ", ".join(self.choices)
        if self.low is not None:
            return f"{_number(self.low)} to {_number(self.high)}"
        if self.high is not None:
            return f"at most {_number(self.high)} characters"
        return "two numbers" if self.is_pair else "text"


def describe(model: type[Options]) -> Iterator[Option]:
    """Yield the options of a group, in the order of their definition."""
    for name, field in model.model_fields.items():
        limits = {
            key: getattr(one, key) for one in field.metadata for key in ("ge", "le", "max_length") if hasattr(one, key)
        }
        kinds = [kind for kind in get_args(field.annotation) or (field.annotation,) if kind is not NoneType]
        choices = kinds if all(isinstance(kind, str) for kind in kinds) else get_args(kinds[0])
        yield Option(
            name,
            field.description or "",
            field.default,
            tuple(choice for choice in choices if isinstance(choice, str)),
            limits.get("ge"),
            limits.get("le", limits.get("max_length")),
            any(get_origin(kind) is tuple for kind in kinds),
        )


def markdown() -> str:
    """Return the table of options in docs/options.md."""
    lines = ["| option | values | default | |", "| --- | --- | --- | --- |"]
    for option in describe(FileOptions):
        default = "the profile's" if option.default is None else str(option.default) or "empty"
        lines.append(f"| `{option.name}` | {option.values} | {default} | {option.help} |")
    return "\n".join(lines) + "\n"


def setting_error(error: ValidationError, model: type[BaseModel]) -> SettingError:
    """Convert a pydantic error to one `SettingError` with a user-facing message that covers all of its faults."""
    faults: dict[str | None, str] = {}
    for fault in error.errors(include_url=False):
        faults.setdefault(str(fault["loc"][0]) if fault["loc"] else None, _sentence(fault, model))
    return _blame(next(iter(faults)), SettingError("; ".join(faults.values())))


def _sentence(fault: ErrorDetails, model: type[BaseModel]) -> str:
    name = ".".join(map(str, fault["loc"][:1]))
    value = fault.get("input")
    known = {option.name: option for option in describe(model)} if issubclass(model, Options) else {}
    if fault["type"] == "extra_forbidden":
        return f"there is no option {name!r}; the options are {', '.join(model.model_fields)}"
    if fault["type"] == "string_too_short" or (fault["type"] == "missing" and len(fault["loc"]) == 1):
        return f"{name} is required"
    if fault["type"] == "string_unicode":  # bytes from the shell that are not UTF-8
        return f"{name} is not valid UTF-8; use a UTF-8 locale"
    if fault["type"] == "string_too_long":
        return f"{name} has {len(str(value))} characters: use at most {known[name].high}"
    if name in known and fault["type"] != "value_error":
        shown = str(value) if isinstance(value, int | float) and not isinstance(value, bool) else repr(value)
        shown = shown if len(shown) <= MAX_SHOWN else f"{shown[:MAX_SHOWN]}..."
        kind = {"string_type": "text of ", "int_from_float": "a whole number, ", "int_parsing": "a whole number, "}
        values = known[name].values
        return f"{name} is {shown}: use {kind.get(fault['type'], '') if values != 'text' else ''}{values}"
    return f"{name}: {fault['msg'].removeprefix('Value error, ')}" if name else fault["msg"]


def _blame(name: str | None, error: SettingError) -> SettingError:
    error.field = name
    return error


def _number(value: float | None) -> str:
    return "2^64 - 1" if value == MAX_SEED else f"{value:,g}" if value is not None else ""
