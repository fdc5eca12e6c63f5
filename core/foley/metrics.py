"""How well a predicted envelope follows the true one: Video-Foley's own measures, in numpy."""

import numpy as np
import numpy.typing as npt


def event_l1(predicted: npt.ArrayLike, true: npt.ArrayLike) -> float:
    """E-L1 (Lee et al., "Video-Foley", TASLP 2025): the mean of |true - predicted| over all frames, both linear RMS."""
    predicted, true = _alike(predicted, true)
    return float(np.abs(true - predicted).mean())


def tolerant_accuracy(predicted: npt.ArrayLike, true: npt.ArrayLike, tolerance: int) -> float:
    """Share of the frames, 0 to 1, whose predicted loudness class is at most `tolerance` classes off."""
    predicted, true = _alike(predicted, true)
    return float((np.abs(true - predicted) <= tolerance).mean())


def _alike(predicted: npt.ArrayLike, true: npt.ArrayLike) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Both in float64, which holds every class and every float32.

    Raises:
        ValueError: their shapes differ; spread over each other they would still have a mean.
    """
    predicted, true = np.asarray(predicted, np.float64), np.asarray(true, np.float64)
    if predicted.shape != true.shape:
        raise ValueError(f"predicted frames {predicted.shape} and true frames {true.shape} differ in number")
    return predicted, true
