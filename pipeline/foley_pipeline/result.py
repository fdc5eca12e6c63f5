"""The result of a generation, and the record of how it was made."""

import json
import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foley import clip, envelope_file
from foley.container import NO_LIMITS
from foley.envelope import Floats
from foley.errors import SettingError
from foley.mux import VIDEO_EXTENSIONS, write_video
from foley.options import SourceAudio
from foley.output import check_destination, replacing
from foley.scratch import temporary_file
from foley.sound_file import SOUND_EXTENSIONS, check_sound, write_sound
from foley.sound_format import DEFAULT_SOUND, SoundFormat
from foley.sound_tags import SoundTags
from foley.timecode import Recorded, read_recorded
from foley_pipeline.hashing import content_sha256
from foley_pipeline.paths import file_path
from foley_pipeline.request import GenerationRequest


@dataclass(frozen=True, eq=False)
class Take:
    """One generated sound.

    Attributes:
        waveform: float32 [samples at 16 kHz] in [-1, 1].
        recipe: Versions, inputs and settings that reproduce the sound.
    """

    waveform: Floats
    recipe: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class GenerationResult:
    """The result of a generation.

    Attributes:
        envelope: The envelope that the sounds follow, linear RMS, float32 [frames at 100 Hz].
        takes: One take per variation.
        timings_s: Seconds per stage. Stages can overlap.
        video: The video, for `save`: a file, or its content.
    """

    envelope: Floats
    takes: list[Take]
    timings_s: Mapping[str, float] = field(default_factory=dict)
    video: Path | bytes | None = None

    def __repr__(self) -> str:
        seconds = len(self.waveform) / clip.SAMPLE_RATE_HZ
        return f"<GenerationResult: {len(self.takes)} x {seconds:.2f} s>"

    @property
    def waveform(self) -> Floats:
        """The sound of the first variation, float32 [samples at 16 kHz] in [-1, 1]."""
        return self.takes[0].waveform

    @property
    def recipe(self) -> Mapping[str, Any]:
        """The recipe of the first variation."""
        return self.takes[0].recipe

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        variation: int = 0,
        source_audio: SourceAudio = "replace",
        sound: SoundFormat = DEFAULT_SOUND,
    ) -> tuple[str, ...]:
        """Write a sound or the envelope to a file, atomically.

        Args:
            path: The file; its extension selects the content. .mp4, .mov, .mkv, .webm: the video with the sound; .wav,
                .flac: the sound; .json, .csv: the envelope.
            variation: Index of the variation, from 0.
            source_audio: What happens to the video's own audio; see `foley.mux.write_video`.
            sound: Sample rate and bit depth of the sound in the file.

        Returns:
            What is not as in the video, and why; one sentence each.

        Raises:
            OutputError: The file cannot be written, or its extension is unknown.
            SettingError: The video is needed and not known: the generation was given an envelope only. Or the format
                does not support `sound`.
        """
        destination = Path(path)
        source = None if isinstance(self.video, bytes | None) else file_path(self.video, "video")
        check_destination(destination, (*VIDEO_EXTENSIONS, *SOUND_EXTENSIONS, *envelope_file.EXTENSIONS), source)
        check_sound(destination, sound)
        with ExitStack() as files:
            if isinstance(self.video, bytes):
                source = files.enter_context(temporary_file(self.video, "video"))
            return self.write(files.enter_context(replacing(destination)), source, variation, source_audio, sound)

    def write(
        self,
        path: Path,
        video: Path | None,
        variation: int = 0,
        source_audio: SourceAudio = "replace",
        sound: SoundFormat = DEFAULT_SOUND,
    ) -> tuple[str, ...]:
        """Write to `path` as `save` does, but with this `video`, without checks, and not atomically."""
        suffix, take = path.suffix.lower(), self.takes[variation]
        if suffix in envelope_file.EXTENSIONS:
            path.write_text(envelope_file.dumps(self.envelope, suffix))
        elif suffix in SOUND_EXTENSIONS:
            # A video that was removed after the generation is no reason to lose the sound.
            recorded = read_recorded(video, NO_LIMITS) if video and video.exists() else Recorded()
            tags = SoundTags(_description(take.recipe), json.dumps(dict(take.recipe)), recorded)
            write_sound(path, take.waveform, clip.SAMPLE_RATE_HZ, sound, tags)
        elif video is None:
            raise SettingError(f"a {suffix} file needs the video, which was not given; save a .wav file")
        else:
            recipe = json.dumps(dict(take.recipe))
            # the video has been read within the limits of the generation
            return write_video(
                video, take.waveform, clip.SAMPLE_RATE_HZ, path, source_audio, recipe, NO_LIMITS, sound
            ).notes
        return ()


def _description(recipe: Mapping[str, Any]) -> str:
    """Return the prompt and the seed of a sound, for people who look for it in a library of sounds."""
    prompt = recipe.get("text") or recipe.get("audio") or ""
    return f"{prompt} (Video-Foley, seed {recipe.get('seed', 0)})".strip()


def describe_inputs(request: GenerationRequest) -> dict[str, Any]:
    """Return the part of a recipe that describes the inputs: names of files, SHA-256 of their content, and texts."""
    envelope = request.envelope
    return {
        "video": request.video.name if request.video else None,
        "video_sha256": content_sha256(request.video) if request.video else None,
        "envelope": envelope.source if envelope else "predicted",
        "envelope_filter": envelope.filter if envelope else "none",
        "text": request.options.text,
        "negative_text": request.options.negative_text,
        "audio": request.audio.name if request.audio else None,
        "audio_sha256": content_sha256(request.audio) if request.audio else None,
    }
