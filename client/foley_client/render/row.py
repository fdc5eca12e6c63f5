"""One row of a manifest: a video, what it is to sound like, and what the result is called."""

import re
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from foley.errors import SettingError
from foley.mux import SOUND_ENDINGS, VIDEO_ENDINGS
from foley.options import FileOptions, GenerateOptions
from foley_client.curves import check_filter
from foley_client.render.place import FAILURES, REPORTS, SIDECAR
from foley_pipeline.job import Job

ENDINGS = (*VIDEO_ENDINGS, *SOUND_ENDINGS)
MAX_NAME = 200  # characters, and room for a sidecar's ending


class Row(FileOptions):
    """What rendering one video means; the fields are the options of `foley generate`.

    Attributes:
        video, audio, envelope: files, as paths or URLs that fsspec reads; paths are relative to the manifest.
        output: name of the result below the output folder; by default the video's, as .mp4. Its ending is its format.
    """

    video: Annotated[str, Field(min_length=1)]
    output: str = ""
    audio: str | None = None
    envelope: str | None = None

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
        folded = [part.casefold() for part in parts]
        if any(part in (".", "..") or part.startswith(".foley-") for part in folded):
            raise ValueError("it would lie outside of the output folder, or hide; choose a plain name")
        is_report = folded[0] == FAILURES or REPORTS.fullmatch(folded[0])
        if is_report or any(part.endswith(SIDECAR) for part in folded):
            raise ValueError("its folder is called like a file that the render writes; choose another name")
        if PurePosixPath(output).suffix.lower() not in ENDINGS:
            raise ValueError(f"its ending is of no known kind; use one of {', '.join(ENDINGS)}")
        return output

    def job(self, video: Path, audio: Path | None) -> Job:
        """The job, its files where they are on this machine. Raises SettingError."""
        check_filter(PurePosixPath(self.envelope) if self.envelope else None, self.envelope_filter)
        if self.variations != 1:
            raise SettingError(
                f"variations is {self.variations}: a row makes one sound; give each its own row and seed"
            )
        options = GenerateOptions(**self.model_dump(include=set(GenerateOptions.model_fields)))
        return Job(video, options, audio)
