"""Timecodes (SMPTE ST 12-1): the clock time of a frame, which lines a sound up with its video in an editor."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av

from foley.container import DEFAULT_LIMITS, Limits, MediaFile, open_media

_TIMECODE = re.compile(r"(\d\d):(\d\d):(\d\d)([:;.,])(\d{2,3})", re.ASCII)
_DATE = re.compile(r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d)", re.ASCII)
DAY_S = 86_400


@dataclass(frozen=True)
class Timecode:
    """The timecode of a frame.

    Attributes:
        frames: Number of frames since midnight.
        rate: Frame rate in Hz, exactly: 30000/1001 rather than 29.97.
        drop_frame: Whether the text skips numbers of frames to keep up with the clock.
    """

    frames: int
    rate: Fraction
    drop_frame: bool = False

    @property
    def seconds(self) -> Fraction:
        """Seconds since midnight, in real time: an hour of 29.97 fps without drop frame takes 3603.6 s."""
        return self.frames / self.rate


@dataclass(frozen=True)
class Recorded:
    """When a video was recorded.

    Attributes:
        start_s: Clock time of the first frame according to the timecode, in seconds since midnight; 0 without one.
        timecode: The timecode at the start of the file, or None.
        date: Date in the metadata, as yyyy-mm-dd, or empty.
        time: Time in the metadata, as hh:mm:ss, or empty.
    """

    start_s: Fraction = Fraction(0)
    timecode: Timecode | None = None
    date: str = ""
    time: str = ""


def parse_timecode(text: str, rate: Fraction) -> Timecode | None:
    """Parse "HH:MM:SS:FF", or "HH:MM:SS;FF" with drop frame.

    Drop frame skips the first two numbers (four at 59.94 fps) of every minute that is not a multiple of ten.

    Args:
        text: The timecode.
        rate: Frame rate of the video in Hz, such as 29.97.

    Returns:
        The timecode; None if there is no such one.
    """
    found = _TIMECODE.fullmatch(text.strip())
    base = round(rate)
    if not found or base < 1:
        return None
    hours, minutes, seconds, frame = (int(found[i]) for i in (1, 2, 3, 5))
    if hours > 23 or minutes > 59 or seconds > 59 or frame >= base:
        return None
    drop_frame = found[4] != ":"
    count = ((60 * hours + minutes) * 60 + seconds) * base + frame
    if drop_frame:
        total = 60 * hours + minutes
        count -= round(base / 15) * (total - total // 10)
    return Timecode(count, _exact(rate), drop_frame)


def read_recorded(video: Path, limits: Limits = DEFAULT_LIMITS) -> Recorded:
    """Read when a video was recorded, from its metadata; what is missing or invalid there is omitted.

    Raises:
        MediaError: The video cannot be read.
        MediaTooLarge: The video exceeds `limits`.
    """
    with open_media(video, limits) as file:
        stream = file.video_stream()
        tags = [one.metadata for one in (stream, file.container, *file.container.streams)]
        origin_s = max(0.0, (file.container.start_time or 0) / av.time_base)
        timecode = _timecode(file, _values(tags, "timecode"), Fraction(stream.guessed_rate or 0))
    start_s = Fraction(0)
    if timecode:
        late_s = max(0.0, _first_frame_s(video, limits) - origin_s)
        start_s = (timecode.seconds + Fraction(late_s)) % DAY_S
    # Apple's key has the local time, the usual one UTC.
    dates = [*_values(tags, "com.apple.quicktime.creationdate"), *_values(tags, "creation_time")]
    date = next(filter(None, map(_DATE.match, dates)), None)
    return Recorded(start_s, timecode, *(date.groups() if date else ()))


def _timecode(file: MediaFile, texts: Iterable[str], rate: Fraction) -> Timecode | None:
    """Return the timecode of a file.

    At 50 and 60 fps, some cameras count every other frame; the first sample of a QuickTime timecode track shows it.
    """
    parsed = [[parse_timecode(text, one) for one in (rate, rate / 2)] for text in texts]
    timecode, slow = next((pair for pair in parsed if pair[0]), (None, None))
    if slow and _first_number(file) == slow.frames:
        return slow
    return timecode


def _first_number(file: MediaFile) -> int | None:
    """Return the number of frames since midnight that the first sample of a QuickTime timecode track has."""
    for stream in file.container.streams.data:
        if "timecode" in stream.metadata:
            packet = next(file.packets(stream), None)
            return int.from_bytes(bytes(packet), "big") if packet is not None and packet.size == 4 else None
    return None


def _first_frame_s(video: Path, limits: Limits) -> float:
    """Return the PTS of the first frame; in decoding order, it is among the first packets."""
    with open_media(video, limits) as file:
        shown = (packet for packet in file.packets(file.video_stream()) if packet.size > 0 and not packet.is_discard)
        times = [file.packet_time_s(packet) for packet in islice(shown, 64)]
    return min((time_s for time_s in times if time_s is not None), default=0.0)


def _exact(rate: Fraction) -> Fraction:
    """Return the standard frame rate, n or n * 1000/1001 Hz, that is nearest to a measured one."""
    base = round(rate)
    return min(Fraction(base), Fraction(1000 * base, 1001), key=lambda standard: abs(standard - rate))


def _values(tags: Iterable[Mapping[str, str]], key: str) -> list[str]:
    return [value for one in tags for name, value in one.items() if name.lower() == key]
