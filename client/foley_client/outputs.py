"""Output files of the command line. The file extension selects the format."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from foley import clip, envelope_file
from foley.envelope import Floats
from foley.errors import SettingError
from foley.mux import SOUND_EXTENSIONS, VIDEO_EXTENSIONS, write_video, write_wav
from foley.options import SourceAudio
from foley.output import check_destination
from foley_client.extras import require
from foley_pipeline.foley import Take

PLOT_EXTENSIONS = (".png",)
ENVELOPE_EXTENSIONS = (*envelope_file.EXTENSIONS, *PLOT_EXTENSIONS)
TAKE_EXTENSIONS = (*VIDEO_EXTENSIONS, *SOUND_EXTENSIONS, *ENVELOPE_EXTENSIONS)


def check(paths: Sequence[Path], extensions: Sequence[str], sources: Sequence[Path]) -> None:
    """Check, before any work is done, that all `paths` can be written.

    Args:
        paths: Output files.
        extensions: Allowed file extensions.
        sources: Input files, which must not be overwritten.

    Raises:
        OutputError: A folder does not exist or is not writable, an extension is not allowed, or a path is a source.
        SettingError: A path is given twice, or a .png is requested and matplotlib is not installed.
    """
    if len({path.resolve() for path in paths}) < len(paths):
        raise SettingError("the same output is named twice")
    for path in paths:
        for source in sources:
            check_destination(path, extensions, source)
    if any(path.suffix.lower() in PLOT_EXTENSIONS for path in paths):
        require("a .png output", "cli", "matplotlib")


@dataclass(frozen=True)
class Result:
    """Content of the output files.

    Attributes:
        source: The input video.
        envelope: RMS values [frames at 100 Hz].
        take: The generated sound; None if only an envelope was predicted.
        source_audio: What happens to the audio of the input video.
    """

    source: Path
    envelope: Floats
    take: Take | None = None
    source_audio: SourceAudio = "replace"


def write(path: Path, result: Result) -> None:
    """Write `result` in the format of the extension of `path`. For atomic writes, use `foley.output.replacing`."""
    suffix, take = path.suffix.lower(), result.take
    if suffix in envelope_file.EXTENSIONS:
        path.write_text(envelope_file.dumps(result.envelope, suffix))
    elif suffix in PLOT_EXTENSIONS:
        from foley_client.picture import draw  # needs matplotlib (extra `cli`)

        draw(path, result.envelope, take.waveform if take else None)
    elif take and suffix in SOUND_EXTENSIONS:
        write_wav(path, take.waveform, clip.SAMPLE_RATE_HZ, json.dumps(take.recipe))
    elif take:
        recipe = json.dumps(take.recipe)
        write_video(result.source, take.waveform, clip.SAMPLE_RATE_HZ, path, result.source_audio, recipe)


def numbered(path: Path, variation: int, variations: int) -> Path:
    """Return the path of one of several variations: `hits.wav` becomes `hits-1.wav`, `hits-2.wav`, ..."""
    return path if variations == 1 else path.with_stem(f"{path.stem}-{variation + 1}")
