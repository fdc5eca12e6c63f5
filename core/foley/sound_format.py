"""The sample format of a generated sound in a file."""

from dataclasses import dataclass
from typing import Literal, get_args

from foley.errors import SettingError

BitDepth = Literal["16", "24", "32f"]

LOWEST_RATE_HZ, HIGHEST_RATE_HZ = 16_000, 192_000


@dataclass(frozen=True)
class SoundFormat:
    """The sample format of a generated sound in a file.

    Attributes:
        rate: Sample rate in Hz, 16,000 to 192,000; None: that of the sound, 16 kHz.
        bit_depth: 16 or 24: integers. 32f: floating point.

    Raises:
        SettingError: A value is out of range.
    """

    rate: int | None = None
    bit_depth: BitDepth = "16"

    def __post_init__(self) -> None:
        valid = isinstance(self.rate, int) and LOWEST_RATE_HZ <= self.rate <= HIGHEST_RATE_HZ
        if self.rate is not None and not valid:
            raise SettingError(f"the sample rate is {self.rate!r}: use {LOWEST_RATE_HZ:,} to {HIGHEST_RATE_HZ:,} Hz")
        if self.bit_depth not in get_args(BitDepth):
            raise SettingError(f"the bit depth is {self.bit_depth!r}: use one of {', '.join(get_args(BitDepth))}")


DEFAULT_SOUND = SoundFormat()
