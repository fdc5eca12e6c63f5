"""Output files of the command line. The file extension selects the format."""

from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import TypeVar

from foley import envelope_file
from foley.envelope import Floats
from foley.errors import SettingError
from foley.mux import VIDEO_EXTENSIONS
from foley.options import SourceAudio
from foley.output import check_destination
from foley.sound_file import SOUND_EXTENSIONS, check_sound
from foley.sound_format import DEFAULT_SOUND, SoundFormat
from foley_client.extras import require
from foley_pipeline.result import GenerationResult

AnyPath = TypeVar("AnyPath", bound=PurePath)

PLOT_EXTENSIONS = (".png",)
ENVELOPE_EXTENSIONS = (*envelope_file.EXTENSIONS, *PLOT_EXTENSIONS)
TAKE_EXTENSIONS = (*VIDEO_EXTENSIONS, *SOUND_EXTENSIONS, *ENVELOPE_EXTENSIONS)


def check(
    paths: Sequence[Path], extensions: Sequence[str], sources: Sequence[Path], sound: SoundFormat = DEFAULT_SOUND
) -> None:
    """Check, before any work is done, that all `paths` can be written.

    Args:
        paths: Output files.
        extensions: Allowed file extensions.
        sources: Input files, which must not be overwritten.
        sound: Sample format of the sound in the files.

    Raises:
        OutputError: A folder does not exist or is not writable, an extension is not allowed, or a path is a source.
        SettingError: A path is given twice, a .png is requested and matplotlib is not installed, or a format does not
            support `sound`.
    """
    if len({path.resolve() for path in paths}) < len(paths):
        raise SettingError("an output is named twice; use different names")
    for path in paths:
        check_sound(path, sound)
        for source in sources:
            check_destination(path, extensions, source)
    if any(path.suffix.lower() in PLOT_EXTENSIONS for path in paths):
        require("a .png output", "cli", "matplotlib")


def write(
    path: Path,
    result: GenerationResult,
    video: Path,
    variation: int = 0,
    source_audio: SourceAudio = "replace",
    sound: SoundFormat = DEFAULT_SOUND,
) -> tuple[str, ...]:
    """Write a variation in the format of the extension of `path`; see `GenerationResult.write`.

    For atomic writes, use `foley.output.replacing`.
    """
    if path.suffix.lower() in PLOT_EXTENSIONS:
        from foley_client.plot import draw  # needs matplotlib (extra `cli`)

        draw(path, result.envelope, result.takes[variation].waveform)
        return ()
    return result.write(path, video, variation, source_audio, sound)


def write_envelope(path: Path, envelope: Floats) -> None:
    """Write an envelope in the format of the extension of `path`."""
    if path.suffix.lower() in PLOT_EXTENSIONS:
        from foley_client.plot import draw

        draw(path, envelope)
    else:
        path.write_text(envelope_file.dumps(envelope, path.suffix.lower()))


def numbered(path: AnyPath, variation: int, variations: int) -> AnyPath:
    """Return the path of one of several variations: `hits.wav` becomes `hits-1.wav`, `hits-2.wav`, ..."""
    return path if variations == 1 else path.with_stem(f"{path.stem}-{variation + 1}")
