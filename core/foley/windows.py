"""Windows of long videos: clips of 10 s that overlap by one second and are cross-faded."""

from collections.abc import Iterable
from typing import Literal

import numpy as np

from foley import clip
from foley.envelope import Floats

OVERLAP_S = 1.0
OVERHANG_S = 1 / clip.FRAME_RATE_HZ
"""Time by which the last window may be longer than 10 s: 300 frames at 29.97 fps last 10.01 s and need one window."""


def window_starts_s(duration_s: float) -> list[float]:
    """Return the start times, in seconds, of the windows of 10 s that cover `duration_s`, but for `OVERHANG_S`."""
    hop = clip.CLIP_SECONDS - OVERLAP_S
    count = 1 + max(0, int(np.ceil(round(duration_s - OVERHANG_S - clip.CLIP_SECONDS, 6) / hop)))
    return [i * hop for i in range(count)]


def cut(values: Floats, start: int, length: int) -> Floats:
    """Return `length` rows of `values` starting at row `start`, zero-padded at the end."""
    piece = values[start : start + length]
    padding = [(0, length - len(piece))] + [(0, 0)] * (values.ndim - 1)
    return np.pad(piece, padding)


def crossfade(
    pieces: Iterable[Floats], count: int, rate_hz: int, length: int, law: Literal["linear", "equal_power"]
) -> Floats:
    """Join the windows' signals by cross-fading.

    Args:
        pieces: One signal per window, [10 s * rate_hz] or longer each. The last one is used to the end of the result;
            its last value is held if it ends before. They are not kept, so that long sounds fit into memory.
        count: Number of pieces.
        rate_hz: Values per second.
        length: Number of values of the result.
        law: "linear": the weights add up to one, for signals that agree in the overlap. "equal_power": the squares of
            the weights add up to one (equal-power cross-fade), which preserves the loudness of independent sounds.

    Returns:
        The joined signal, float32 [length].
    """
    overlap = round(OVERLAP_S * rate_hz)
    hop = round((clip.CLIP_SECONDS - OVERLAP_S) * rate_hz)
    ramp = (np.arange(overlap, dtype=np.float32) + 0.5) / overlap
    if law == "equal_power":
        ramp = np.sin(ramp * (np.pi / 2))
    end = max(length, (count - 1) * hop + hop + overlap)
    joined = np.zeros(end, np.float32)
    for i, piece in enumerate(pieces):
        is_last = i == count - 1
        size = end - i * hop if is_last else hop + overlap
        weights = np.ones(size, np.float32)
        if i > 0:
            weights[:overlap] = ramp
        if not is_last:
            weights[-overlap:] = ramp[::-1]
        held = np.pad(piece[:size], (0, max(0, size - len(piece))), mode="edge")
        joined[i * hop : i * hop + size] += weights * held
    return joined[:length]
