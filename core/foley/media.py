"""Reads videos: their properties, and their frames in the format of the networks (30 fps, 344 x 256, RGB, upright).

The only decoder of untrusted video, used by the command line, the API and the render farm. `foley.container` opens the
files and checks them. `foley.audio` reads audio.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from foley import envelope
from foley.clip import FRAME_HEIGHT, FRAME_RATE_HZ, FRAME_WIDTH
from foley.container import DEFAULT_LIMITS, Limits, MediaFile, ends_early, open_media, too_large
from foley.errors import MediaError
from foley.orientation import Orientation, orientation_of

__all__ = ["DEFAULT_LIMITS", "Frames", "Limits", "VideoInfo", "probe", "read_frames"]

Image: TypeAlias = NDArray[np.uint8]


@dataclass(frozen=True)
class VideoInfo:
    """Properties of a video file, measured on its packets and its first frame.

    Attributes:
        duration_s: Seconds from the start of the first frame to the end of the last one, regardless of the audio.
        start_s: PTS of the first frame, in seconds.
        last_s: PTS of the last frame, in seconds.
        clock_s: Time base of the video stream, in seconds; time stamps are multiples of it.
        width: Width in pixels, as displayed.
        height: Height in pixels, as displayed.
        source_frames: Number of frames in the file.
        orientation: How the stored frames are turned and mirrored for display.
        codec: FFmpeg's name of the video codec, such as `h264`.
        has_audio: Whether the file has an audio track.
    """

    duration_s: float
    start_s: float
    last_s: float
    clock_s: float
    width: int
    height: int
    source_frames: int
    orientation: Orientation
    codec: str
    has_audio: bool

    @property
    def fps(self) -> float:
        """Mean frame rate of the source, in Hz."""
        return self.source_frames / self.duration_s

    @property
    def frames(self) -> int:
        """Number of frames that `read_frames` yields: the duration at 30 fps, at least 1."""
        return max(1, round(self.duration_s * FRAME_RATE_HZ))

    def samples(self, rate: int) -> int:
        """Return the number of samples at `rate` Hz of a sound as long as the video."""
        return envelope.samples(self.duration_s, rate)


class Frames:
    """The frames of a video as a sized iterable.

    Each iteration decodes from the start and keeps one source frame in memory.

    Attributes:
        info: Properties of the video.
        path: The file.
    """

    def __init__(self, path: Path, limits: Limits) -> None:
        self.info = probe(path, limits)
        self.path = path
        self._limits = limits

    def __len__(self) -> int:
        return self.info.frames

    def __iter__(self) -> Iterator[Image]:
        """Decode the video.

        Yields:
            `len(self)` RGB images, uint8 [256, 344, 3]. Image k is the source frame that is shown at k / 30 s; the same
            array is repeated while a source frame is shown.

        Raises:
            MediaError: The video is damaged.
        """
        # With a time base of 1 ms (Matroska, FLV), a PTS is up to half a tick late. A coarser time base is exact: one
        # tick per frame. The microsecond allows for floating-point errors.
        late_s = 1e-6 + (self.info.clock_s / 2 if self.info.clock_s <= 1e-3 else 0.0)
        count = 0
        for frame, _, until_s in self.source_frames():
            image = None
            while count < len(self) and count / FRAME_RATE_HZ + late_s < until_s:
                if image is None:  # convert only frames that are used: half of the frames at 60 fps are not
                    image = resize(to_rgb(frame, self.info.orientation))
                yield image
                count += 1

    def source_frames(self) -> Iterator[tuple[Any, float, float]]:
        """Decode the video at its own frame rate and size.

        Yields:
            (frame, from, until): the frame as stored, and when it is shown, in seconds after the start of the video.

        Raises:
            MediaError: The video is damaged.
        """
        with open_media(self.path, self._limits) as file:
            shown, shown_s = None, 0.0
            for frame, time_s in _timed_frames(file):
                if shown is not None:
                    yield shown, shown_s, time_s - self.info.start_s
                shown, shown_s = frame, time_s - self.info.start_s
            if shown is None or ends_early(shown_s, self.info.last_s - self.info.start_s):
                raise file.damaged("its video ends early")
            yield shown, shown_s, self.info.duration_s


def read_frames(path: Path, limits: Limits = DEFAULT_LIMITS) -> Frames:
    """Open the video at `path` for reading at 30 fps, 344 x 256, RGB, upright.

    Raises:
        MediaError: The file is missing, not a video, damaged, or a single frame.
        MediaTooLarge: The file exceeds `limits`.
    """
    return Frames(path, limits)


def probe(path: Path, limits: Limits = DEFAULT_LIMITS) -> VideoInfo:
    """Return the properties of the video at `path`; reads all of its packets and decodes one frame.

    Raises:
        MediaError: The file is missing, not a video, damaged, or a single frame.
        MediaTooLarge: The file exceeds `limits`.
    """
    with open_media(path, limits) as file:
        stream = file.video_stream()
        has_audio = any(other.type == "audio" for other in file.container.streams)
        first = None
        count = 0
        start_s, last_s, end_s = float("inf"), float("-inf"), float("-inf")
        for packet in file.packets(stream):
            if first is None:
                first = next(file.decode(packet), None)
            time_s = file.packet_time_s(packet)
            if packet.size == 0 or packet.is_discard or time_s is None:  # end of stream, or excluded by an edit list
                continue
            count += 1
            start_s = min(start_s, time_s)
            if time_s > last_s:
                last_s, end_s = time_s, time_s + _packet_duration(packet, stream)
            _check_length(end_s - start_s, count, file)
        if first is None or count == 0:
            raise MediaError(f"{path.name} has no video frame that can be decoded; export it again")
        if file.is_whole and ends_early(file.end_s, file.declared_s):
            end_s = file.declared_s  # Matroska can lack the duration of the last frame
            _check_length(end_s - start_s, count, file)
        duration_s = _exact_duration(end_s - start_s, count, stream, file.counts_frames)
        orientation = orientation_of(first)
        width, height = first.width, first.height
        info = VideoInfo(
            duration_s=duration_s,
            start_s=start_s,
            last_s=last_s,
            clock_s=float(stream.time_base),
            width=height if orientation.transposed else width,
            height=width if orientation.transposed else height,
            source_frames=count,
            orientation=orientation,
            codec=stream.codec_context.codec.canonical_name,
            has_audio=has_audio,
        )
    if count < 2 or info.frames < 2:
        raise MediaError(f"{path.name} has only one frame, so there is no motion; give a longer video")
    return info


def to_rgb(frame: Any, orientation: Orientation) -> Image:
    """Convert a decoded frame to RGB, uint8 [height, width, 3], in its orientation for display."""
    return orientation.upright(frame.to_ndarray(format="rgb24"))


def resize(image: Image, height: int = FRAME_HEIGHT, width: int = FRAME_WIDTH) -> Image:
    """Resize uint8 [h, w, 3] to [height, width, 3] bilinearly, without antialiasing.

    Equals PyTorch's `interpolate(mode="bilinear")`; the networks were trained on frames resized in this way.
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
    """Return, for each output pixel along one axis, the two nearest input pixels and the weight of the second."""
    centre = np.maximum((np.arange(new_size) + 0.5) * (size / new_size) - 0.5, 0)
    first = centre.astype(np.intp)
    return first, np.minimum(first + 1, size - 1), (centre - first).astype(np.float32)


def _timed_frames(file: MediaFile) -> Iterator[tuple[Any, float]]:
    """Decode the video; yield each frame with its PTS in seconds."""
    decoding_times: deque[float] = deque()
    last_s = float("-inf")
    for packet in file.packets(file.video_stream()):
        packet_s = file.packet_time_s(packet)
        if not file.has_pts and packet_s is not None:
            decoding_times.append(packet_s)
        for frame in file.decode(packet):
            # Without PTS, the n-th frame in display order gets the n-th DTS.
            time_s = decoding_times.popleft() if decoding_times else frame.time
            if time_s is None:
                raise file.damaged("a frame has no time stamp")
            last_s = max(last_s, time_s)  # time stamps in MPEG-PS are not always monotonic
            yield frame, last_s


def _check_length(duration_s: float, frames: int, file: MediaFile) -> None:
    limits = file.limits
    if duration_s > limits.duration_s:
        raise too_large("duration_s", f"{file.name} is longer than the limit of {limits.duration_s:g} s; split it")
    if frames > limits.frames:
        raise too_large("frames", f"{file.name} has more than {limits.frames} frames, the limit; split it")


def _packet_duration(packet: Any, stream: Any) -> float:
    """Return the duration of a packet's frame in seconds, from the frame rate if the container does not store it."""
    if packet.duration:
        return float(packet.duration * packet.time_base)
    return float(1 / stream.guessed_rate) if stream.guessed_rate else 1 / FRAME_RATE_HZ


def _exact_duration(measured_s: float, frames: int, stream: Any, is_counted: bool) -> float:
    """Return the duration without the rounding of the container's time base, if the frame rate is constant.

    For example, 90 frames at 60 fps are 1.5 s, but 1.499 s in Matroska, whose time base is 1 ms.
    """
    if not stream.guessed_rate:
        return measured_s
    constant_s = float(frames / stream.guessed_rate)
    # A tick of a coarse time base is a whole frame, which may be missing.
    tick_s = stream.time_base if is_counted else min(stream.time_base, 1e-3)
    return constant_s if abs(constant_s - measured_s) <= 1.5 * tick_s else measured_s
