"""The door for media files from outside: nothing else in this project opens one.

What comes in may be broken or made to do harm, so it passes three gates. `open_media` opens regular files of known
formats only and lets none of them name another file. `read_packets` counts what it walks and sees when a file holds
less than it promises. `decode` stops at the first sign of damage. None of this bounds the time that one frame takes
to decode: a service runs this code in a child process with resource limits.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
from av.container import InputContainer

from foley.errors import MediaError, MediaTooLarge

# Demuxers that hold their media themselves. Playlists (hls, concat, dash) and image sequences stay out: they open
# other files of this machine or of its network.
_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif,flv,asf,ogg,mpegts,mpeg,wav,w64,aiff,au,caf,flac,mp3,aac"

# How files of these formats begin: where one cannot be opened, it is damaged rather than something else.
_SIGNATURES = (
    (4, b"ftyp"),
    (4, b"moov"),
    (0, b"\x1aE\xdf\xa3"),
    (0, b"RIFF"),
    (0, b"GIF8"),
    (0, b"OggS"),
    (0, b"fLaC"),
)


@dataclass(frozen=True)
class Limits:
    """How much of a file is read before it is refused with `MediaTooLarge`."""

    bytes: int = 4 * 2**30
    """Size of the file."""
    duration_s: float = 600.0
    """Length of the video, or of the sound, in seconds."""
    pixels: int = 4096 * 2304
    """Pixels of one frame, the most that H.264 level 5.1 has: 4K passes, upright too, and 4096 x 4096 does not."""
    frames: int = 240 * 600
    """Video frames walked, shown or not: ten minutes at 240 fps."""
    samples: int = 2 * 192_000 * 600
    """Sound samples walked, over all channels: ten minutes of stereo at 192 kHz."""
    packets: int = 1_000_000
    """Packets walked, over all streams."""
    streams: int = 64
    """Streams in the file."""


DEFAULT_LIMITS = Limits()


@contextmanager
def open_media(path: Path, limits: Limits) -> Iterator[InputContainer]:
    """Open a media file for reading, as the only file that its demuxer can reach.

    Raises MediaError or MediaTooLarge when it is not a file that can be read, or not media of a known format.
    """
    try:
        size = path.stat().st_size
        regular = path.is_file()
        file = path.open("rb") if regular else None  # a pipe would block the opening
    except OSError as error:
        raise MediaError(f"{path} cannot be read ({error.strerror}); check the name and the permissions") from error
    if file is None:
        raise MediaError(f"{path} is not a file; give the name of a media file")
    with file:
        if size == 0:
            raise MediaError(f"{path.name} is empty; export or download it again")
        if size > limits.bytes:
            raise MediaTooLarge(f"{path.name} has {size} bytes, the limit is {limits.bytes}; compress it or cut it")
        head = file.peek(16)
        try:
            container = av.open(
                file,
                "r",
                # Both lists, and no `io_open`: a nested demuxer ignores that callback but inherits the lists.
                container_options={
                    "format_whitelist": _FORMATS,
                    "protocol_whitelist": "",
                    "max_streams": str(limits.streams),
                },
                options={"max_pixels": str(limits.pixels)},  # opening already decodes a few frames of some files
                metadata_errors="replace",
            )
        except (av.FFmpegError, ValueError) as error:
            if any(head.startswith(signature, offset) for offset, signature in _SIGNATURES):
                raise damaged(path, "its index is missing or broken") from error
            raise MediaError(
                f"{path.name} is not a video or sound file of a known format; give an MP4, MOV, MKV, WebM, WAV, ..."
            ) from error
        with container:
            if len(container.streams) > limits.streams:
                raise MediaTooLarge(f"{path.name} has more than {limits.streams} streams; export one video track")
            yield container


def read_packets(container: InputContainer, path: Path, limits: Limits) -> Iterator[Any]:
    """Walk the packets of all streams, in the order of the file, with an empty one per stream to end it.

    Raises MediaError when one is corrupt or the file ends before it should, MediaTooLarge past `limits.packets`.
    """
    start_s, end_s = float("inf"), float("-inf")
    try:
        for count, packet in enumerate(container.demux()):
            if count > limits.packets:
                raise MediaTooLarge(f"{path.name} holds more than {limits.packets} packets; cut it into parts")
            if packet.is_corrupt:
                raise damaged(path, "a part of it is missing")
            time_s = packet_seconds(packet)
            if time_s is not None:
                start_s = min(start_s, time_s)
                end_s = max(end_s, time_s + float((packet.duration or 0) * packet.time_base))
            yield packet
    except (av.FFmpegError, OSError) as error:
        raise damaged(path, "its structure is broken, or the disk is") from error
    # Raw ADTS and MP3 have no header to promise a length; FFmpeg only guesses it there.
    promised_s = 0.0 if container.format.name in ("aac", "mp3") else (container.duration or 0) / av.time_base
    if ends_early(end_s - start_s, promised_s):
        raise damaged(path, f"it ends after {max(0.0, end_s - start_s):.1f} of {promised_s:.1f} s")


def decode(packet: Any, path: Path) -> Iterator[Any]:
    """Decode one packet into its frames (the empty last one: into those still held back).

    Raises MediaError at the first sign of damage.
    """
    try:
        frames = packet.decode()
    except av.FFmpegError as error:
        raise damaged(path, "it cannot be decoded") from error
    for frame in frames:
        if frame.is_corrupt:
            raise damaged(path, "a picture or sound in it is incomplete")
        yield frame


def ends_early(reached_s: float, promised_s: float) -> bool:
    """Whether `reached_s` is so far from `promised_s` that something is missing; headers are a little off at times."""
    return promised_s - reached_s > max(0.25, 0.02 * promised_s)


def damaged(path: Path, how: str) -> MediaError:
    """The error for a file that is not whole."""
    return MediaError(f"{path.name} is damaged: {how}; export or download it again")


def has_presentation_times(container: InputContainer) -> bool:
    """Whether every packet says when it is shown. AVI never does, MPEG-PS seldom; FFmpeg's guesses there are poor."""
    return container.format.name not in ("avi", "mpeg")


def packet_seconds(packet: Any) -> float | None:
    """A packet's time in seconds: of presentation, or of decoding where only that is known. None for the last."""
    presented = packet.pts is not None and has_presentation_times(packet.stream.container)
    stamp = packet.pts if presented else packet.dts
    return None if stamp is None else float(stamp * packet.time_base)
