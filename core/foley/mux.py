"""Writes a video with a new sound: the source's streams and tags are copied, and only encoded again where they must be.

For an atomic write, pass the temporary path from `foley.output.replacing`.
"""

import errno
from contextlib import ExitStack
from dataclasses import dataclass
from heapq import merge
from pathlib import Path
from typing import Any, get_args

import av

from foley.audio import Samples
from foley.container import DEFAULT_LIMITS, Limits, open_media
from foley.delivery import Delivery
from foley.errors import OutputError, SettingError
from foley.options import SourceAudio
from foley.output import check_destination
from foley.output_format import FORMATS, VIDEO_EXTENSIONS
from foley.sound_file import check_waveform
from foley.sound_format import DEFAULT_SOUND, SoundFormat

__all__ = ["VIDEO_EXTENSIONS", "Muxed", "write_video"]

_DISK_ERRORS = frozenset({errno.ENOSPC, errno.EIO, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EDQUOT, errno.EROFS})


@dataclass(frozen=True)
class Muxed:
    """The result of `write_video`.

    Attributes:
        video_codec: FFmpeg's name of the video codec in the output.
        video_copied: Whether the video stream was copied; False: it was encoded again.
        notes: What is not as in the source, and why; one sentence each.
    """

    video_codec: str
    video_copied: bool
    notes: tuple[str, ...] = ()


def write_video(
    source: Path,
    waveform: Samples,
    rate: int,
    destination: Path,
    source_audio: SourceAudio = "replace",
    recipe: str = "",
    limits: Limits = DEFAULT_LIMITS,
    sound: SoundFormat = DEFAULT_SOUND,
) -> Muxed:
    """Write the video of `source` with a new sound that starts at its first frame.

    All streams, tags and chapters of the source are copied if the output format can hold them; docs/formats.md lists
    what each format holds. The new sound is the first sound track and the default one: AAC in .mp4, .m4v and .mov,
    FLAC in .mkv, Opus in .webm; with a bit depth of 24 or 32f, PCM in .mov.

    Args:
        source: The video.
        waveform: The new sound, float32 [n] in [-1, 1].
        rate: Sample rate of `waveform` in Hz.
        destination: The output file; its extension selects the format.
        source_audio: What happens to the sound of the source, if it has any. "replace": it is left out. "mix": its
            first track is added to the new sound, with the track's sample rate and channels and the length of the new
            sound; the sum is scaled down if it would clip; the other tracks are kept. "keep": all tracks are kept.
        recipe: How the sound was made, for the tag `foley_recipe`.
        limits: Limits on the source.
        sound: Sample format of the new sound's track. A mix has the sample rate of the source.

    Raises:
        MediaError: The source cannot be read.
        OutputError: The destination or the waveform is invalid.
        SettingError: `source_audio` is unknown.
    """
    if source_audio not in get_args(SourceAudio):
        raise SettingError(f"source_audio is {source_audio!r}: use one of {', '.join(get_args(SourceAudio))}")
    check_destination(destination, VIDEO_EXTENSIONS, source)
    check_waveform(waveform)
    kind = FORMATS[destination.suffix.lower()]
    with ExitStack() as stack:
        file = stack.enter_context(open_media(source, limits))
        # `file:` prevents a colon in the name from being parsed as a protocol.
        output = stack.enter_context(
            av.open(f"file:{destination}", "w", format=kind.muxer, container_options=kind.options)
        )
        delivery = Delivery(file, output, kind, destination.suffix.lower())
        delivery.add_video()
        delivery.add_sound(waveform, rate, sound, mix=source_audio == "mix")
        if source_audio != "replace":
            delivery.add_sound_tracks(skip_first=source_audio == "mix")
        delivery.add_other_tracks()
        delivery.add_tags(recipe)
        try:
            for packet in merge(delivery.copied_packets(), *delivery.encoded, key=_decoding_time_s):
                output.mux(packet)
        except av.FFmpegError as error:
            if error.errno in _DISK_ERRORS:
                raise
            reason = error.strerror
            raise OutputError(
                f"the video cannot be written as {destination.suffix} ({reason}); use another format"
            ) from error
    delivery.finish(destination)
    return Muxed(delivery.video_codec, delivery.video_copied, tuple(delivery.notes))


def _decoding_time_s(packet: Any) -> float:
    return float((packet.pts if packet.dts is None else packet.dts) * packet.time_base)
