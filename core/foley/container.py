"""Opens untrusted media; the only module that opens containers.

Input files may be damaged or malicious, so they are checked at every stage:

- `open_media` opens only regular files of known formats, and prevents the demuxer from opening other files.
- `MediaFile.video_stream` limits the size of the frames.
- `MediaFile.packets` limits the number of packets, gives each a time, and detects truncated files.
- `MediaFile.decode` raises at the first decoding error.

The time to decode a single frame is not bounded. Services run this code in a child process with resource limits.
"""

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader, FileIO
from pathlib import Path
from typing import Any

import av
from av.container import InputContainer
from av.stream import Disposition

from foley import formats
from foley.errors import MediaError, MediaTooLarge

_INT_MAX = 2**31 - 1
_NO_TIMESTAMPS = 0x80  # FFmpeg's flag for formats of elementary streams, AVFMT_NOTIMESTAMPS

# Formats without a duration in the header; FFmpeg estimates it from the bit rate.
_ESTIMATED = ("aac", "mp3", "ac3", "eac3", "dts", "dtshd", "loas")


@dataclass(frozen=True)
class Limits:
    """Upper limits for input files; a file that exceeds one raises `MediaTooLarge`.

    They protect from files that take unexpectedly long, and services from hostile ones. See also `limits_for`.

    Attributes:
        bytes: Size of the file. The default is unlimited: files are read in pieces.
        duration_s: Duration of the video or of the audio, in seconds.
        pixels: Pixels per frame. The default is the maximum of H.264 level 5.1: it accepts 4K in portrait and landscape
            orientation, and refuses 4096 x 4096.
        frames: Video frames, including those that are not shown. The default is ten minutes at 240 fps.
        samples: Decoded audio samples, summed over all channels. The default is ten minutes of stereo at 192 kHz.
        packets: Packets read, summed over all streams.
        streams: Streams in the file.
    """

    bytes: int = sys.maxsize
    duration_s: float = 600.0
    pixels: int = 4096 * 2304
    frames: int = 240 * 600
    samples: int = 2 * 192_000 * 600
    packets: int = 1_000_000
    streams: int = 64


DEFAULT_LIMITS = Limits()
# None at all. Frames are then as large as FFmpeg's types permit, and a damaged header can take any memory.
NO_LIMITS = Limits(sys.maxsize, math.inf, _INT_MAX, sys.maxsize, sys.maxsize, sys.maxsize, _INT_MAX)


def limits_for(duration_s: float = DEFAULT_LIMITS.duration_s, pixels: int = DEFAULT_LIMITS.pixels) -> Limits:
    """Return limits that permit `duration_s`: those of frames, samples and packets are raised in proportion."""
    factor = max(1.0, duration_s / DEFAULT_LIMITS.duration_s)
    counts = {name: round(factor * getattr(DEFAULT_LIMITS, name)) for name in ("frames", "samples", "packets")}
    return Limits(duration_s=duration_s, pixels=pixels, **counts)


def too_large(limit: str, message: str) -> MediaTooLarge:
    """Return the error for a file that exceeds a limit.

    Args:
        limit: Name of the limit, an attribute of `Limits`.
        message: What is too large, and what to do about the file.
    """
    error = MediaTooLarge(message)
    error.limit = limit
    return error


class _Unnamed(BufferedReader):
    """A file without a name for FFmpeg, so that its content selects the demuxer, not its extension."""

    name = ""


class MediaFile:
    """An open media file; created by `open_media`.

    Attributes:
        container: The open container.
        path: Path of the file.
        name: File name, for error messages.
        limits: Limits on the file.
        is_whole: Whether the file is known to have all of its bytes, so that it cannot be truncated.
        declared_s: The duration that the file declares, in seconds; 0 if it declares none.
        end_s: The end of the last packet of any stream, in seconds, once `packets` has read the file.
        counts_frames: Whether the time of a frame is its number over the constant frame rate. `packets` then sets the
            DTS. Elementary streams have no time stamps; those of GXF are inaccurate; MXF can lack the order of frames.
        has_pts: Whether packets have a PTS. AVI has none, MPEG-PS rarely; FFmpeg's estimates for both are inaccurate.
    """

    def __init__(self, container: InputContainer, path: Path, limits: Limits, is_whole: bool = False) -> None:
        self.container, self.path, self.limits, self.is_whole = container, path, limits, is_whole
        self.name, self.end_s = path.name, float("-inf")
        kind = container.format.name
        is_elementary = bool(container.format.flags & _NO_TIMESTAMPS)
        has_duration = not is_elementary and kind not in _ESTIMATED
        self.declared_s = (container.duration or 0) / av.time_base if has_duration else 0.0
        is_unordered = kind == "mxf" and any(map(_reorders, container.streams.video))
        self.counts_frames = is_elementary or is_unordered or kind == "gxf"
        self.has_pts = kind not in ("avi", "mpeg") and not self.counts_frames
        # Matroska's duration includes the time before the first packet
        self._starts_at_zero = "matroska" in kind

    def video_stream(self) -> Any:
        """Return the first video stream; its decoder refuses frames above `limits.pixels`.

        Cover art is ignored, and so is a stream of one frame, such as the still image of an AVIF, if there is another.

        Raises:
            MediaError: The file has no video stream, or its codec is not supported.
            MediaTooLarge: The frames exceed `limits.pixels`.
        """
        streams = [one for one in self.container.streams.video if not one.disposition & Disposition.attached_pic]
        if not streams:
            raise MediaError(f"{self.name} has no video stream; give a video file")
        stream = next((one for one in streams if one.frames != 1), streams[0])
        context = stream.codec_context
        if context is None:
            raise self._undecodable("video")
        pixels = context.width * context.height
        if not 0 < pixels <= self.limits.pixels:  # 0: the decoder already refused a frame when the file was opened
            size = f"{context.width} x {context.height}" if pixels else "unknown or excessive size"
            raise too_large(
                "pixels", f"{self.name} has frames of {size}, the limit is {self.limits.pixels} pixels; scale it down"
            )
        # The size in the header may be wrong, so the decoder checks too. It ignores the options of the container.
        context.options = {"max_pixels": str(self.limits.pixels)}
        return stream

    def audio_stream(self) -> Any:
        """Return the first audio stream.

        Raises:
            MediaError: The file has no audio stream, or its codec is not supported.
        """
        stream = next(iter(self.container.streams.audio), None)
        if stream is None:
            raise MediaError(f"{self.name} has no audio track; give a file with audio")
        if stream.codec_context is None:
            raise self._undecodable("audio")
        return stream

    def packets(self, *streams: Any) -> Iterator[Any]:
        """Read the packets of some streams in file order; the checks cover all streams.

        Yields:
            The packets, including the empty packet that flushes the decoder at the end of the stream.

        Raises:
            MediaError: A packet is corrupt, or the file ends before its declared duration.
            MediaTooLarge: There are more than `limits.packets` packets.
        """
        start_s, counted = 0.0 if self._starts_at_zero else float("inf"), None
        self.end_s = float("-inf")
        video = next((one for one in streams if one.type == "video"), None) if self.counts_frames else None
        ticks = round(1 / (video.guessed_rate * video.time_base)) if video and video.guessed_rate else 0  # of a frame
        try:
            for count, packet in enumerate(self.container.demux()):
                if count > self.limits.packets:
                    raise too_large("packets", f"{self.name} has more than {self.limits.packets} packets; split it")
                if packet.is_corrupt:
                    raise self.damaged("a part of it is missing")
                is_wanted = packet.stream in streams
                if ticks and packet.stream is video and packet.size > 0:
                    packet.dts = counted = (packet.pts or 0) if counted is None else counted
                    counted += ticks
                time_s = self.packet_time_s(packet)
                if time_s is not None:
                    start_s = min(start_s, time_s)
                    self.end_s = max(self.end_s, time_s + float((packet.duration or 0) * packet.time_base))
                elif is_wanted and packet.size > 0 and not packet.stream.disposition & Disposition.attached_pic:
                    if not self.has_pts:
                        continue  # MPEG-PS cut from a longer one can begin with packets of unknown time
                    raise self.damaged("a part of it has no time stamp")
                if is_wanted:
                    yield packet
        except (av.FFmpegError, OSError) as error:
            raise self.damaged("its structure is invalid, or it cannot be read from the disk") from error
        read_s = max(0.0, self.end_s - start_s)
        if not self.is_whole and ends_early(read_s, self.declared_s):
            raise self.damaged(f"it ends after {read_s:.1f} of {self.declared_s:.1f} s")

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

    def packet_time_s(self, packet: Any) -> float | None:
        """Return a packet's PTS in seconds, or its DTS if it has no PTS; None for the empty packet at the end."""
        stamp = packet.pts if packet.pts is not None and self.has_pts else packet.dts
        return None if stamp is None else float(stamp * packet.time_base)

    def _undecodable(self, kind: str) -> MediaError:
        with self.path.open("rb") as file:
            names = formats.sample_entries(file)
        if "mov" in self.container.format.name and not names:
            return self.damaged("its index is missing or broken")
        return MediaError(f"{self.name} {formats.undecodable(names, kind)}")

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
        file = _Unnamed(FileIO(path)) if regular else None  # opening a pipe would block
    except OSError as error:
        raise MediaError(f"cannot read {path} ({error.strerror}); check the name and the permissions") from error
    if file is None:
        raise MediaError(f"{path} is not a file; use the name of a media file")
    with file:
        if size == 0:
            raise MediaError(f"{path.name} is empty; export or download it again")
        if size > limits.bytes:
            raise too_large("bytes", f"{path.name} has {size} bytes, the limit is {limits.bytes}; compress or cut it")
        try:
            head, entries = file.read(formats.HEAD), formats.sample_entries(file)
            file.seek(0)
        except OSError as error:
            raise MediaError(f"cannot read {path} ({error.strerror}); check the disk") from error
        known = formats.unreadable(head)
        if known and head[4:8] == b"ftyp":  # FFmpeg opens images in MP4, but not correctly
            raise MediaError(f"{path.name} {known}")
        if entries & {"encv", "enca"}:
            raise MediaError(f"{path.name} is encrypted (DRM); give a file without copy protection")
        try:
            container = av.open(
                file,
                "r",
                # Whitelists instead of an `io_open` callback: nested demuxers inherit the lists but not the callback.
                container_options={
                    "format_whitelist": formats.DEMUXERS,
                    "protocol_whitelist": "",
                    "max_streams": str(limits.streams),
                },
                options={"max_pixels": str(limits.pixels)},  # for some files, opening decodes a few frames
                metadata_errors="replace",
            )
        except (av.FFmpegError, ValueError) as error:
            if known:
                raise MediaError(f"{path.name} {known}") from error
            if formats.is_readable(head):
                raise _damaged(path.name, "its index is missing or broken") from error
            raise MediaError(
                f"{path.name} is not a video or audio file of a known format; use MP4, MOV, MKV, WebM or WAV"
            ) from error
        with container:
            if len(container.streams) > limits.streams:
                raise too_large(
                    "streams", f"{path.name} has more than {limits.streams} streams; export only one video track"
                )
            yield MediaFile(container, path, limits, (formats.segment_end(head) or size + 1) <= size)


def ends_early(end_s: float, declared_s: float) -> bool:
    """Whether the data end more than 0.25 s and 2 % before the declared end; headers can be slightly inaccurate."""
    return declared_s - end_s > max(0.25, 0.02 * declared_s)


def _reorders(stream: Any) -> bool:
    """Whether a video stream of MXF has frames out of order, other than those of MPEG-2, whose PTS are right."""
    context = stream.codec_context
    return context is not None and context.has_b_frames and context.name != "mpeg2video"


def _damaged(name: str, how: str) -> MediaError:
    return MediaError(f"{name} is damaged: {how}; export or download it again")
