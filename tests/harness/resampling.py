"""Resampling of whole sounds, as arrays."""

import numpy as np

from foley.audio import resampled


def resample(samples: np.ndarray, rate: int, new_rate: int) -> np.ndarray:
    """Resample float32 [channels, n] to [channels, round(n * new_rate / rate)]."""
    nothing = np.empty(0, np.float32)
    return np.stack([np.concatenate([nothing, *resampled(channel, rate, new_rate)]) for channel in samples])
