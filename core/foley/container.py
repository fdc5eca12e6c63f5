"""Opens untrusted media; the only module that opens containers.

Input files may be damaged or malicious, so they are checked at every stage:

- `open_media` opens only regular files of known formats, and prevents the demuxer from opening other files.
- `MediaFile.video_stream` limits the size of the frames.
- `MediaFile.packets` limits the number of packets, and detects truncated files.
- `MediaFile.decode` raises at the first decoding error.

The time to decode a single frame is not bounded. Services run this code in a child process with resource limits.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
from av.container import InputContainer
from av.stream import Disposition

from foley.errors import MediaError, MediaTooLarge

# Demuxers of self-contained formats. Playlists (hls, concat, dash) and image sequences are excluded: they open other
# files, local or remote.
_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif,flv,asf,ogg,mpegts,mpeg,wav,w64,aiff,au,caf,flac,mp3,aac"

# (offset, magic bytes) of known formats. If such a file cannot be opened, it is reported as damaged, not as unknown.
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
    """Upper limits for input files; a file that exceeds one raises `MediaTooLarge`.

    Attributes:
        bytes: Size of the file.
        duration_s: Duration of the video or of the audio, in seconds.
        pixels: Pixels per frame. The default is the maximum of H.264 level 5.1: it accepts 4K in portrait and landscape
            orientation, and refuses 4096 x 4096.
        frames: Video frames, including those that are not shown. The default is ten minutes at 240 fps.
        samples: Decoded audio samples, summed over all channels. The default is ten minutes of stereo at 192 kHz.
        packets: Packets read, summed over all streams.
        streams: Streams in the file.
    """

    bytes: int = 4 * 2**30
    duration_s: float = 600.0
    pixels: int = 4096 * 2304
    frames: int = 240 * 600
    samples: int = 2 * 192_000 * 600
    packets: int = 1_000_000
    streams: int = 64


DEFAULT_LIMITS = Limits()


class MediaFile:
    """An open media file; created by `open_media`.

    Attributes:
        container: The open container.
        path: Path of the file.
        name: File name, for error messages.
        limits: Limits on the file.
    """

    def __init__(self, container: InputContainer, path: Path, limits: Limits) -> None:
        self.container, self.path, self.limits = container, path, limits
        self.name = path.name

    def video_stream(self) -> Any:
        """Return the first video stream, ignoring cover art; its decoder refuses frames above `limits.pixels`.

        Raises:
            MediaError: The file has no video stream, or its codec is not supported.
            MediaTooLarge: The frames exceed `limits.pixels`.
        """
        streams = [one for one in self.container.streams.video if not one.disposition & Disposition.attached_pic]
        if not streams:
            raise MediaError(f"{self.name} has no video stream; give a video file")
        context = streams[0].codec_context
        if context is None:
            raise MediaError(f"{self.name} uses a video codec that cannot be decoded; convert it to H.264")
        pixels = context.width * context.height
        if not 0 < pixels <= self.limits.pixels:  # 0: the decoder already refused a frame when the file was opened
            size = f"{context.width} x {context.height}" if pixels else "unknown or excessive size"
            raise MediaTooLarge(
                f"{self.name} has frames of {size}, the limit is {self.limits.pixels} pixels; scale it down"
            )
        # The size in the header may be wrong, so the decoder checks too. It ignores the options of the container.
        context.options = {"max_pixels": str(self.limits.pixels)}
        return streams[0]

    def audio_stream(self) -> Any:
        """Return the first audio stream.

        Raises:
            MediaError: The file has no audio stream, or its codec is not supported.
        """
        stream = next(iter(self.container.streams.audio), None)
        if stream is None:
            raise MediaError(f"{self.name} has no audio track; give a file with audio")
        if stream.codec_context is None:
            raise MediaError(f"{self.name} uses an audio codec that cannot be decoded; convert it to WAV")
        return stream

    def packets(self, *streams: Any) -> Iterator[Any]:
        """Read the packets of some streams in file order; the checks cover all streams.

        Yields:
            The packets, including the empty packet that flushes the decoder at the end of the stream.

        Raises:
            MediaError: A packet is corrupt, or the file ends before its declared duration.
            MediaTooLarge: There are more than `limits.packets` packets.
        """
        start_s, end_s = float("inf"), float("-inf")
        try:
            for count, packet in enumerate(self.container.demux()):
                if count > self.limits.packets:
                    raise MediaTooLarge(f"{self.name} has more than {self.limits.packets} packets; split it")
                if packet.is_corrupt:
                    raise self.damaged("a part of it is missing")
                time_s = self.packet_time_s(packet)
                if time_s is not None:
                    start_s = min(start_s, time_s)
                    end_s = max(end_s, time_s + float((packet.duration or 0) * packet.time_base))
                if packet.stream in streams:
                    yield packet
        except (av.FFmpegError, OSError) as error:
            raise self.damaged("its structure is invalid, or it cannot be read from the disk") from error
        # Raw ADTS and MP3 declare no duration; FFmpeg only estimates it.
        is_estimated = self.container.format.name in ("aac", "mp3")
        declared_s = 0.0 if is_estimated else (self.container.duration or 0) / av.time_base
        if ends_early(end_s - start_s, declared_s):
            raise self.damaged(f"it ends after {max(0.0, end_s - start_s):.1f} of {declared_s:.1f} s")

    def decode(self, packet: Any) -> Iterator[Any]:
        """Decode one packet.

        Yields:
            The decoded frames. For the empty packet at the end of a stream, these are the frames left in the decoder.

        Raises:
            MediaError: The packet cannot be decoded, or a frame is corrupt.
        """
        try:
            frames = packet.decode()
        except av.FFmpegError as error:
            raise self.damaged("it cannot be decoded") from error
        for frame in frames:
            if frame.is_corrupt:
                raise self.damaged("a frame is incomplete")
            yield frame

    @property
    def has_pts(self) -> bool:
        """Whether packets have a PTS. AVI has none, MPEG-PS rarely; FFmpeg's estimates for both are inaccurate."""
        return self.container.format.name not in ("avi", "mpeg")

    def packet_time_s(self, packet: Any) -> float | None:
        """Return a packet's PTS in seconds, or its DTS if it has no PTS; None for the empty packet at the end."""
        stamp = packet.pts if packet.pts is not None and self.has_pts else packet.dts
        return None if stamp is None else float(stamp * packet.time_base)

    def damaged(self, how: str) -> MediaError:
        """Return the error for a damaged file."""
        return _damaged(self.name, how)


@contextmanager
def open_media(path: Path, limits: Limits) -> Iterator[MediaFile]:
    """Open a media file for reading; the demuxer cannot open any other file.

    Yields:
        The open file.

    Raises:
        MediaError: The file cannot be read, is empty or damaged, or its format is unknown.
        MediaTooLarge: The file exceeds `limits.bytes` or `limits.streams`.
    """
    try:
        size = path.stat().st_size
        regular = path.is_file()
        file = path.open("rb") if regular else None  # opening a pipe would block
    except OSError as error:
        raise MediaError(f"cannot read {path} ({error.strerror}); check the name and the permissions") from error
    if file is None:
        raise MediaError(f"{path} is not a file; use the name of a media file")
    with file:
        if size == 0:
            raise MediaError(f"{path.name} is empty; export or download it again")
        if size > limits.bytes:
            raise MediaTooLarge(f"{path.name} has {size} bytes, the limit is {limits.bytes}; compress or cut it")
        head = file.peek(16)
        try:
            container = av.open(
                file,
                "r",
                # Whitelists instead of an `io_open` callback: nested demuxers inherit the lists but not the callback.
                container_options={
                    "format_whitelist": _FORMATS,
                    "protocol_whitelist": "",
                    "max_streams": str(limits.streams),
                },
                options={"max_pixels": str(limits.pixels)},  # for some files, opening decodes a few frames
                metadata_errors="replace",
            )
        except (av.FFmpegError, ValueError) as error:
            if any(head.startswith(signature, offset) for offset, signature in _SIGNATURES):
                raise _damaged(path.name, "its index is missing or broken") from error
            raise MediaError(
                f"{path.name} is not a video or audio file of a known format; use MP4, MOV, MKV, WebM or WAV"
            ) from error
        with container:
            if len(container.streams) > limits.streams:
                raise MediaTooLarge(f"{path.name} has more than {limits.streams} streams; export only one video track")
            yield MediaFile(container, path, limits)


def ends_early(end_s: float, declared_s: float) -> bool:
    """Whether the data end more than 0.25 s and 2 % before the declared end; headers can be slightly inaccurate."""
    return declared_s - end_s > max(0.25, 0.02 * declared_s)


def _damaged(name: str, how: str) -> MediaError:
    return MediaError(f"{name} is damaged: {how}; export or download it again")
