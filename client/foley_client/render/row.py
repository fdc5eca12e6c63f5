"""One row of a manifest: a video, the settings of its sound, and the name of the result."""

import re
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from foley.mux import VIDEO_EXTENSIONS
from foley.options import RANDOM_SEED, FileOptions, GenerateOptions
from foley.sound_file import SOUND_EXTENSIONS, check_sound
from foley_client.curves import check_filter
from foley_client.outputs import numbered
from foley_client.render.storage import FAILURES, REPORTS, SIDECAR
from foley_pipeline.request import GenerationRequest

EXTENSIONS = (*VIDEO_EXTENSIONS, *SOUND_EXTENSIONS)
MAX_NAME = 200  # characters; leaves room for the extension of the sidecar


class Row(FileOptions):
    """Files and options of one row; the options are those of `foley generate`.

    Files are paths relative to the manifest, or URLs that fsspec supports.

    Attributes:
        video: The video.
        output: Name of the result below the output folder, by default the stem of the video with .mp4. The extension
            selects the format.
        audio: Recording used as the prompt.
        envelope: Envelope file or recording used instead of the predicted envelope.
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
        """Check that a name stays below the output folder and does not collide with other files of the render."""
        parts = output.split("/")
        if len(output) > MAX_NAME or not all(re.fullmatch(r"[^\x00-\x1f\\]+", part) for part in parts):
            raise ValueError("it is not a valid file name; use letters, digits, dots and dashes")
        folded = [part.casefold() for part in parts]
        if any(part in (".", "..") or part.startswith(".foley-") for part in folded):
            raise ValueError("it is hidden or outside the output folder; use a plain name")
        is_report = folded[0] == FAILURES or REPORTS.fullmatch(folded[0])
        if is_report or any(part.endswith(SIDECAR) for part in folded):
            raise ValueError("the render itself writes a file of this name; use another name")
        if PurePosixPath(output).suffix.lower() not in EXTENSIONS:
            raise ValueError(f"its extension is unknown; use one of {', '.join(EXTENSIONS)}")
        return output

    def variants(self) -> list["Row"]:
        """Return one row for each variation, with the names and seeds of `foley generate --variations`."""
        if self.variations == 1:
            return [self]
        return [
            self.model_copy(
                update={
                    "output": str(numbered(PurePosixPath(self.output), i, self.variations)),
                    "seed": self.seed if self.seed == RANDOM_SEED else self.seed + i,
                    "variations": 1,
                }
            )
            for i in range(self.variations)
        ]

    def request(self, video: Path, audio: Path | None) -> GenerationRequest:
        """Return the request of this row.

        Args:
            video: Local path of the video.
            audio: Local path of the audio prompt.

        Raises:
            SettingError: Options exclude each other.
        """
        check_sound(Path(self.output), self.sound)
        check_filter(PurePosixPath(self.envelope) if self.envelope else None, self.envelope_filter)
        options = GenerateOptions(**self.model_dump(include=set(GenerateOptions.model_fields)))
        return GenerationRequest(video, None, audio, options)
