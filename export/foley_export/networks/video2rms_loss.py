"""Training targets of Video2RMS, smoothed loudness classes, and the loss on them.

Lee et al., "Video-Foley" (TASLP 2025), section III. A target is made in three steps:

    envelope 512/128 -> `low_pass` -> `to_classes` -> `smooth_labels` -> `cross_entropy` with the network's logits

`low_pass` is in `foley.envelope_filter`.
"""

from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from foley import envelope

Smoothing = Literal["official", "paper"]

SMOOTHED_DISTANCE = 2  # W: classes on either side of the true one with non-zero weight


def to_classes(rms: npt.ArrayLike, classes: int = 64) -> npt.NDArray[np.int64]:
    """Return the loudness class of every linear RMS: the number of bins <= it; negative values are class 0.

    Full scale is in the last class; in the official code it would be one class past the end.
    """
    found = np.searchsorted(envelope.mu_law_bins(classes), np.maximum(rms, 0), side="right")
    return np.minimum(found, classes - 1).astype(np.int64)


def smooth_labels(targets: Tensor, classes: int = 64, smoothing: Smoothing = "official") -> Tensor:
    """Convert classes int64 [...] to soft targets float32 [..., classes] with weight on neighbouring classes.

    Weights at distance d <= W from the true class: exp(-d**2 / 2) in the paper (equation 3), exp(-2**d / 4) in the
    official code; 1 at the true class. Class 0 (silence) is neither smoothed nor a neighbour. Rows do not sum to 1.
    """
    every = torch.arange(classes, device=targets.device)
    distance = (every - targets[..., None]).abs()
    exponent = distance**2 / 2 if smoothing == "paper" else 2.0**distance / 4
    sounds = (every > 0) & (targets[..., None] > 0)
    near = torch.where(sounds & (distance <= SMOOTHED_DISTANCE), torch.exp(-exponent), 0.0)
    return torch.where(distance == 0, 1.0, near)


def cross_entropy(logits: Tensor, soft_targets: Tensor) -> Tensor:
    """Return the mean over all frames of -sum(target * log(softmax(logits))); both are [..., frames, classes]."""
    return -(soft_targets * logits.log_softmax(-1)).sum(-1).mean()
