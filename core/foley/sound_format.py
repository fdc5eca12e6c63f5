"""The sample format of a generated sound in a file."""

from dataclasses import dataclass
from typing import Literal

BitDepth = Literal["16", "24", "32f"]


@dataclass(frozen=True)
class SoundFormat:
    """The sample format of a generated sound in a file.

    Attributes:
        rate: Sample rate in Hz; None: that of the sound, 16 kHz.
        bit_depth: 16 or 24: integer PCM. 32f: 32-bit floating point.
    """

    rate: int | None = None
    bit_depth: BitDepth = "16"
