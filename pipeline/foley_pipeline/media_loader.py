"""Interface for opening media files: in this process by default, or in a sandboxed one for untrusted files."""

from collections.abc import Callable, Iterable, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from foley.audio import read_audio
from foley.container import DEFAULT_LIMITS, Limits
from foley.envelope import Floats
from foley.media import VideoInfo, read_frames

Image = npt.NDArray[np.uint8]


class FrameStream(Sized, Iterable[Image], Protocol):
    """A sized iterable of RGB frames at 30 fps, uint8 [256, 344, 3] each."""


class Video(FrameStream, Protocol):
    """An opened video, such as `foley.media.Frames`."""

    @property
    def info(self) -> VideoInfo:
        """Properties of the video."""

    @property
    def path(self) -> Path:
        """The file of the video."""


@dataclass(frozen=True)
class MediaLoader:
    """Functions that open media files; both raise `MediaError`.

    Attributes:
        video: Opens a video.
        audio: Reads a recording as mono, float32 [samples at 16 kHz].
    """

    video: Callable[[Path], Video]
    audio: Callable[[Path], Floats]


def in_process(limits: Limits = DEFAULT_LIMITS) -> MediaLoader:
    """Return the loader that opens files in this process."""
    return MediaLoader(lambda path: read_frames(path, limits), lambda path: read_audio(path, limits))
