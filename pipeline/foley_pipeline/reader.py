"""What opens media files: this process by default, a process of its own where the files are a stranger's."""

from collections.abc import Callable, Iterable, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from foley.audio import read_audio
from foley.envelope import Floats
from foley.media import VideoInfo, read_frames

Image = npt.NDArray[np.uint8]


class FrameStream(Sized, Iterable[Image], Protocol):
    """Frames at 30 fps, uint8 [256, 344, 3] each, whose number is known."""


class Video(FrameStream, Protocol):
    """An opened video (`foley.media.Frames`)."""

    @property
    def info(self) -> VideoInfo:
        """What it holds."""

    @property
    def path(self) -> Path:
        """The file that it was opened from."""


@dataclass(frozen=True)
class Reader:
    """Opens videos, and reads recordings as samples at 16 kHz; both raise `MediaError`."""

    video: Callable[[Path], Video]
    audio: Callable[[Path], Floats]


IN_PROCESS = Reader(read_frames, read_audio)
