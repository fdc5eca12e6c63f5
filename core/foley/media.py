"""Reading video: what a file holds, and its frames as the networks take them (30 fps, 344 x 256, RGB, upright).

The one decoder of untrusted video; the command line, the API and the render farm all read through it. Files are
opened by `foley.container`, which holds the defences. Sound is read by `foley.audio`.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from numpy.typing import NDArray

from foley.clip import FRAME_HEIGHT, FRAME_RATE_HZ, FRAME_WIDTH
from foley.container import (
    DEFAULT_LIMITS,
    Limits,
    damaged,
    decode,
    ends_early,
    has_presentation_times,
    open_media,
    packet_seconds,
    read_packets,
)
from foley.errors import MediaError, MediaTooLarge

__all__ = ["DEFAULT_LIMITS", "Frames", "Limits", "VideoInfo", "probe", "read_frames"]

Image: TypeAlias = NDArray[np.uint8]


@dataclass(frozen=True)
class VideoInfo:
    """What a video file holds, measured on its packets and its first frame."""

    duration_s: float
    """Seconds from the start of the first frame to the end of the last, whatever the sound's length."""
    start_s: float
    """Time stamp of the first frame, in seconds on the file's own clock."""
    clock_s: float
    """One tick of the file's clock, in seconds: time stamps are rounded to it."""
    width: int
    """Pixels, as shown: after rotation."""
    height: int
    """Pixels, as shown: after rotation."""
    source_frames: int
    """Frames in the file."""
    rotation: int
    """Degrees counter-clockwise that the stored frames are turned for showing: 0, 90, 180 or 270."""
    codec: str
    """FFmpeg's name of the video codec, such as ``h264``."""
    has_audio: bool
    """Whether the file has a sound track of its own."""

    @property
    def fps(self) -> float:
        """Mean frames per second of the source."""
        return self.source_frames / self.duration_s

    @property
    def frames(self) -> int:
        """Frames that `read_frames` yields: the duration at 30 fps."""
        return max(1, round(self.duration_s * FRAME_RATE_HZ))

    def samples(self, rate: int) -> int:
        """Samples of a sound that is exactly as long as the video, at `rate` Hz."""
        return round(self.duration_s * rate)


class Frames:
    """A video as a stream of frames: iterate for the frames, `len()` for their number, `info` for the rest.

    Every iteration decodes from the start and holds one source frame at a time.
    """

    def __init__(self, path: Path, limits: Limits) -> None:
        self.info = probe(path, limits)
        self.path = path
        self._limits = limits

    def __len__(self) -> int:
        return self.info.frames

    def __iter__(self) -> Iterator[Image]:
        """Yield `len(self)` images, UINT8 [256, 344, 3] RGB; one that is shown for longer is the same array again.

        Frame k is the source frame on show at k / 30 s. Raises MediaError when the video turns out to be damaged.
        """
        # A clock of milliseconds (Matroska, FLV) stamps a frame up to half a tick late. A coarser clock is exact: it
        # ticks once a frame. The microsecond is for sums of floats.
        late_s = 1e-6 + (self.info.clock_s / 2 if self.info.clock_s <= 1e-3 else 0.0)
        count = 0
        for frame, _, until_s in shown_frames(self.path, self.info, self._limits):
            image = None
            while count < len(self) and count / FRAME_RATE_HZ + late_s < until_s:
                if image is None:  # only what is shown is worth converting: half of a 60 fps video is not
                    image = resize(to_rgb(frame, self.info.rotation))
                yield image
                count += 1


def read_frames(path: Path, limits: Limits = DEFAULT_LIMITS) -> Frames:
    """Open the video at `path` for reading as 30 fps, 344 x 256, RGB, upright.

    Raises what `probe` raises.
    """
    return Frames(path, limits)


def probe(path: Path, limits: Limits = DEFAULT_LIMITS) -> VideoInfo:
    """Measure the video at `path`: walks all of its packets, decodes one frame.

    Raises MediaError when it is missing, not a video, damaged or too short to hold motion, and MediaTooLarge when it
    passes `limits`.
    """
    with open_media(path, limits) as container:
        stream = video_stream(container, path, limits)
        has_audio = any(other.type == "audio" for other in container.streams)
        first = None
        count = 0
        start_s, last_s, end_s = float("inf"), float("-inf"), float("-inf")
        for packet in read_packets(container, path, limits):
            if packet.stream is not stream:
                continue
            if first is None:
                first = next(iter(decode(packet, path)), None)
            time_s = packet_seconds(packet)
            if packet.size == 0 or packet.is_discard or time_s is None:  # the end, or cut away by an edit list
                continue
            count += 1
            start_s = min(start_s, time_s)
            if time_s > last_s:
                last_s, end_s = time_s, time_s + _packet_duration(packet, stream)
            if end_s - start_s > limits.duration_s:
                raise MediaTooLarge(
                    f"{path.name} lasts more than {limits.duration_s:g} s, which is the limit; cut it into parts"
                )
            if count > limits.frames:
                raise MediaTooLarge(
                    f"{path.name} holds more than {limits.frames} frames, which is the limit; cut it into parts"
                )
        if first is None or count == 0:
            raise MediaError(f"{path.name} holds no picture that can be decoded; export it again")
        duration_s = _exact_duration(end_s - start_s, count, stream)
        rotation = round(first.rotation / 90) % 4 * 90
        width, height = first.width, first.height
        info = VideoInfo(
            duration_s=duration_s,
            start_s=start_s,
            clock_s=float(stream.time_base),
            width=height if rotation % 180 else width,
            height=width if rotation % 180 else height,
            source_frames=count,
            rotation=rotation,
            codec=stream.codec_context.codec.canonical_name,
            has_audio=has_audio,
        )
    if count < 2 or info.frames < 2:
        raise MediaError(f"{path.name} is a single frame, so there is no motion to hear; give a longer video")
    return info


def shown_frames(path: Path, info: VideoInfo, limits: Limits) -> Iterator[tuple[Any, float, float]]:
    """Decode the video at `path`; yield (frame as stored, from, until), in seconds after the start of the video.

    Raises MediaError when it is damaged.
    """
    with open_media(path, limits) as container:
        stream = video_stream(container, path, limits)
        shown, shown_s = None, 0.0
        for frame, time_s in _timed_frames(container, stream, path, limits):
            if shown is not None:
                yield shown, shown_s, time_s - info.start_s
            shown, shown_s = frame, time_s - info.start_s
        if shown is None or ends_early(shown_s + 1 / info.fps, info.duration_s):
            raise damaged(path, "its pictures end early")
        yield shown, shown_s, info.duration_s


def video_stream(container: InputContainer, path: Path, limits: Limits) -> Any:
    """The video stream of an open file, ready to decode no frame larger than the limit; cover art does not count.

    Raises MediaError when there is none that can be decoded, MediaTooLarge when its frames are too large.
    """
    pictures = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    if not pictures:
        raise MediaError(f"{path.name} has no video stream; give a file with moving pictures")
    stream = pictures[0]
    context = stream.codec_context
    if context is None:
        raise MediaError(f"{path.name} uses a video codec that cannot be decoded here; convert it to H.264")
    pixels = context.width * context.height
    if not 0 < pixels <= limits.pixels:  # 0: the decoder has met the same limit while the file was opened
        size = f"{context.width} x {context.height}" if pixels else "unknown or enormous size"
        raise MediaTooLarge(f"{path.name} has frames of {size}, the limit is {limits.pixels} pixels; scale it down")
    # The header may lie. The decoder itself obeys only options of its own context; those of the container are lost.
    context.options = {"max_pixels": str(limits.pixels)}
    return stream


def to_rgb(frame: Any, rotation: int) -> Image:
    """A decoded frame of any pixel format as UINT8 [height, width, 3] RGB, turned by `rotation` degrees."""
    return np.rot90(frame.to_ndarray(format="rgb24"), rotation // 90)


def resize(image: Image, height: int = FRAME_HEIGHT, width: int = FRAME_WIDTH) -> Image:
    """Scale UINT8 [h, w, 3] to [height, width, 3]: bilinear between the four nearest pixels, without antialiasing.

    The networks were trained on frames of this kind; it is torch's `interpolate(mode="bilinear")`.
    """
    top, bottom, down = _neighbours(image.shape[0], height)
    left, right, across = _neighbours(image.shape[1], width)
    down, across = down[:, None, None], across[:, None]

    def interpolate(lines: NDArray[np.intp]) -> NDArray[np.float32]:
        rows = image[lines]
        here, there = rows.take(left, axis=1).astype(np.float32), rows.take(right, axis=1)
        return np.asarray(here + (there - here) * across)

    above, below = interpolate(top), interpolate(bottom)
    return np.asarray(np.rint(above + (below - above) * down), dtype=np.uint8)


def _neighbours(size: int, new_size: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """For every new pixel: the two old ones that its centre lies between, and the weight of the second."""
    centre = np.maximum((np.arange(new_size) + 0.5) * (size / new_size) - 0.5, 0)
    first = centre.astype(np.intp)
    return first, np.minimum(first + 1, size - 1), (centre - first).astype(np.float32)


def _timed_frames(container: InputContainer, stream: Any, path: Path, limits: Limits) -> Iterator[tuple[Any, float]]:
    """Decode the stream's frames, each with its time in seconds on the file's clock."""
    decoding_times: deque[float] = deque()
    last_s = float("-inf")
    for packet in read_packets(container, path, limits):
        if packet.stream is not stream:
            continue
        if not has_presentation_times(container) and packet.size > 0:
            decoding_times.append(packet_seconds(packet) or 0.0)
        for frame in decode(packet, path):
            # Without presentation times: the n-th frame to be shown takes the n-th place in time.
            time_s = decoding_times.popleft() if decoding_times else frame.time
            if time_s is None:
                raise damaged(path, "a picture in it has no time stamp")
            last_s = max(last_s, time_s)  # a stamp of MPEG-PS goes astray at times
            yield frame, last_s


def _packet_duration(packet: Any, stream: Any) -> float:
    """Seconds that a packet's frame is shown; some containers leave it to the frame rate."""
    if packet.duration:
        return float(packet.duration * packet.time_base)
    return float(1 / stream.guessed_rate) if stream.guessed_rate else 1 / FRAME_RATE_HZ


def _exact_duration(measured_s: float, frames: int, stream: Any) -> float:
    """The duration without the container's rounding, where the frame rate is constant.

    90 frames at 60 fps are 1.5 s; on Matroska's clock of milliseconds they measure 1.499 s.
    """
    if not stream.guessed_rate:
        return measured_s
    constant_s = float(frames / stream.guessed_rate)
    return constant_s if abs(constant_s - measured_s) <= 1.5 * stream.time_base else measured_s
