"""The orientation of a video's frames: how the stored frames are turned and mirrored for display."""

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from av.sidedata.sidedata import Type
from numpy.typing import NDArray


@dataclass(frozen=True)
class Orientation:
    """One of the eight orientations of Exif: the frame is transposed, then mirrored.

    Attributes:
        transposed: Whether rows and columns are exchanged.
        mirrored: Whether left and right are exchanged after that.
        flipped: Whether top and bottom are exchanged after that.
    """

    transposed: bool = False
    mirrored: bool = False
    flipped: bool = False

    @property
    def filters(self) -> list[tuple[str, str]]:
        """FFmpeg's filters that turn a stored frame upright, as (name, arguments)."""
        steps = [
            (self.transposed, ("transpose", "cclock_flip")),  # FFmpeg's name of a plain transposition
            (self.mirrored, ("hflip", "")),
            (self.flipped, ("vflip", "")),
        ]
        return [one for needed, one in steps if needed]

    def upright(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return a view of a stored image, [height, width, ...], in its orientation for display."""
        if self.transposed:
            image = image.swapaxes(0, 1)
        if self.mirrored:
            image = image[:, ::-1]
        return image[::-1] if self.flipped else image


def orientation_of(frame: Any) -> Orientation:
    """Return the orientation of a decoded frame, from its display matrix; other angles are rounded to quarter turns."""
    data = frame.side_data.get(Type.DISPLAYMATRIX)
    if data is None:
        return Orientation()
    # x' = a x + c y, y' = b x + d y
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(data)[:36])
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return Orientation(False, a < 0, d < 0)
    return Orientation(True, c < 0, b < 0)
