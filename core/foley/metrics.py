"""Metrics: those of the Video-Foley paper for envelopes, and the relative error of arrays."""

import math

import numpy as np
import numpy.typing as npt


def event_l1(predicted: npt.ArrayLike, true: npt.ArrayLike) -> float:
    """Return E-L1 (Lee et al., "Video-Foley", TASLP 2025): the mean of |true - predicted|, both linear RMS."""
    predicted, true = _alike(predicted, true)
    return float(np.abs(true - predicted).mean())


def tolerant_accuracy(
    predicted: npt.ArrayLike, true: npt.ArrayLike, tolerance: int, *, skip_silence: bool = False
) -> float:
    """Return the share of frames whose predicted loudness class is at most `tolerance` classes off.

    Args:
        predicted: Predicted classes, [frames].
        true: True classes, [frames].
        tolerance: Maximum difference in classes.
        skip_silence: Whether to exclude frames that are silent (class 0) in both, which are frequent and easy to
            predict.

    Returns:
        The accuracy, 0 to 1; 1 if no frame is left.
    """
    predicted, true = _alike(predicted, true)
    near = np.abs(true - predicted) <= tolerance
    if skip_silence:
        near = near[(predicted > 0) | (true > 0)]
    return float(near.mean()) if near.size else 1.0


def correlation(one: npt.ArrayLike, other: npt.ArrayLike) -> float:
    """Return Pearson's correlation of two envelopes, -1 to 1; 0 if one of them is constant."""
    a, b = (values - values.mean() for values in _alike(one, other))
    scale = np.linalg.norm(a) * np.linalg.norm(b)
    return float(np.vdot(a, b) / scale) if scale > 0 else 0.0


def relative_l2(found: npt.ArrayLike, expected: npt.ArrayLike) -> float:
    """Return ||found - expected|| / ||expected|| (L2); 0 for equal arrays, else infinite if `expected` is all zero."""
    one, other = _alike(found, expected)
    difference, norm = float(np.linalg.norm(one - other)), float(np.linalg.norm(other))
    if not difference:
        return 0.0
    return difference / norm if norm else math.inf


def _alike(predicted: npt.ArrayLike, true: npt.ArrayLike) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Convert both to float64, which represents every class and every float32 exactly.

    Raises:
        ValueError: The shapes differ; broadcasting would hide the mistake.
    """
    predicted, true = np.asarray(predicted, np.float64), np.asarray(true, np.float64)
    if predicted.shape != true.shape:
        raise ValueError(f"the shapes {predicted.shape} and {true.shape} differ")
    return predicted, true
