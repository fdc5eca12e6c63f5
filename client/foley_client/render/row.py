"""One row of a manifest: a video, what it is to sound like, and what the result is called."""

import re
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from foley.loudness import Loudness
from foley.mux import SOUND_ENDINGS, VIDEO_ENDINGS, SourceAudio
from foley.profiles import ProfileName
from foley.sampler import SamplerName
from foley.schedule import Spacing
from foley.stages import FlowMethod
from foley_pipeline.job import Job
from foley_pipeline.prompt import Prompt

ENDINGS = (*VIDEO_ENDINGS, *SOUND_ENDINGS)
MAX_NAME = 200  # characters, and room for a sidecar's ending
SAMPLING = ("sampler", "steps", "spacing", "eta", "guidance", "guidance_interval", "seed")


def _pair(value: Any) -> Any:
    """`"0.3 100"` in a table is a pair, as on the command line."""
    return value.split() if isinstance(value, str) else value


class Row(BaseModel):
    """What rendering one video means; the fields are the options of `foley generate`.

    Attributes:
        video, audio, envelope: files, as paths or URLs that fsspec reads; paths are relative to the manifest.
        output: name of the result below the output folder; by default the video's, as .mp4. Its ending is its format.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    video: Annotated[str, Field(min_length=1)]
    output: str = ""
    text: str = ""
    audio: str | None = None
    negative_text: str = ""
    envelope: str | None = None
    seed: int = 0
    profile: ProfileName = "balanced"
    flow: FlowMethod | None = None
    sampler: SamplerName | None = None
    steps: int | None = None
    spacing: Spacing | None = None
    eta: float | None = None
    guidance: float | None = None
    guidance_interval: Annotated[tuple[float, float] | None, BeforeValidator(_pair)] = None
    loudness: Loudness = "level"
    source_audio: SourceAudio = "replace"

    @model_validator(mode="before")
    @classmethod
    def _named(cls, values: dict[str, Any]) -> dict[str, Any]:
        if isinstance(values.get("video"), str) and not values.get("output"):
            stem = PurePosixPath(re.sub(r"[?#].*", "", values["video"])).stem
            return {**values, "output": f"{stem or 'video'}.mp4"}
        return values

    @field_validator("output")
    @classmethod
    def _is_a_name(cls, output: str) -> str:
        """A name stays below the output folder, whatever the manifest says."""
        parts = output.split("/")
        if len(output) > MAX_NAME or not all(re.fullmatch(r"[^\x00-\x1f\\]+", part) for part in parts):
            raise ValueError("it is no name for a file; use letters, digits, dots and dashes")
        if any(part in (".", "..") or part.startswith(".foley-") for part in parts):
            raise ValueError("it would lie outside of the output folder, or hide; choose a plain name")
        if PurePosixPath(output).suffix.lower() not in ENDINGS:
            raise ValueError(f"its ending is of no known kind; use one of {', '.join(ENDINGS)}")
        return output

    def job(self, video: Path, audio: Path | None) -> Job:
        """The job, its files where they are on this machine. Raises SettingError."""
        chosen = {name: getattr(self, name) for name in SAMPLING}
        return Job(
            video,
            Prompt(self.text, audio, self.negative_text),
            self.profile,
            self.flow,
            chosen,
            level=self.loudness,
        )
