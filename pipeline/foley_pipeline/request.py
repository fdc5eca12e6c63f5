"""The request for a generation."""

from dataclasses import dataclass, field
from pathlib import Path

from foley import clip
from foley.envelope import Floats, frames, validate
from foley.errors import SettingError
from foley.options import EnvelopeFilter, GenerateOptions
from foley_pipeline.paths import file_path
from foley_pipeline.prompt import Prompt


@dataclass(frozen=True, eq=False)  # arrays compare elementwise
class EnvelopeInput:
    """An envelope to generate sound for.

    Attributes:
        envelope: Linear RMS, float32 [frames at 100 Hz].
        samples: Length of the sound, in samples at 16 kHz.
        source: Where the envelope is from, for the recipe: the name of a file, "predicted", or "given".
        filter: The filter that was applied to it, for the recipe.

    Raises:
        EnvelopeError: The envelope is invalid, or its length does not match `samples`.
    """

    envelope: Floats
    samples: int
    source: str = "given"
    filter: EnvelopeFilter = "none"

    def __post_init__(self) -> None:
        curve = validate(self.envelope, frames(self.samples / clip.SAMPLE_RATE_HZ))
        object.__setattr__(self, "envelope", curve)  # a list of numbers may be given, too


@dataclass(frozen=True, eq=False)
class GenerationRequest:
    """A request for a generation. Paths may be given as strings.

    Attributes:
        video: The video. Its envelope is predicted, unless there is an `envelope`.
        envelope: The envelope, in place of a predicted one.
        audio: Recording that is the timbre prompt, in place of `options.text`.
        options: Options; those that are not set come from the profile, else from the bundle. A random seed is drawn
            here, so that retries of the request, and all parts of the recipe, have the same one.

    Raises:
        SettingError: There is neither a video nor an envelope, there are both a text and a recording, or a file is
            neither a string nor a path.
    """

    video: Path | None = None
    envelope: EnvelopeInput | None = None
    audio: Path | None = None
    options: GenerateOptions = field(default_factory=GenerateOptions)

    def __post_init__(self) -> None:
        if self.video is None and self.envelope is None:
            raise SettingError("there is neither a video nor an envelope; give one of them")
        for name in ("video", "audio"):
            if (file := getattr(self, name)) is not None:
                object.__setattr__(self, name, file_path(file, name))
        object.__setattr__(self, "options", self.options.with_drawn_seed())
        _ = self.prompt

    @property
    def prompt(self) -> Prompt:
        """The timbre prompt."""
        return Prompt(self.options.text, self.audio, self.options.negative_text)
