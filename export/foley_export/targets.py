"""What Video2RMS is trained to say: the loudness classes of a sound, smoothed, and the loss on them.

Lee et al., "Video-Foley" (TASLP 2025), section III. A target is made in three steps:

    envelope 512/128 -> `low_pass` -> `to_classes` -> `smooth` -> `cross_entropy` with the network's logits

`low_pass` is in `foley.envelope_filter`.
"""

from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from foley import envelope

Smoothing = Literal["official", "paper"]

SMOOTHED_DISTANCE = 2  # W: classes on either side of the true one that share in it


def to_classes(rms: npt.ArrayLike, classes: int = 64) -> npt.NDArray[np.int64]:
    """The loudness class of every linear RMS: how many bins lie at or under it; negative values are in class 0.

    Full scale is in the last class, where the official code counts one class more than there are.
    """
    found = np.searchsorted(envelope.mu_law_bins(classes), np.maximum(rms, 0), side="right")
    return np.minimum(found, classes - 1).astype(np.int64)


def smooth(targets: Tensor, classes: int = 64, smoothing: Smoothing = "official") -> Tensor:
    """True classes int64 [...] as soft targets float32 [..., classes] that also count near misses.

    At distance d <= W of the true class: exp(-d**2 / 2) in the paper (equation 3), exp(-2**d / 4) in the official
    code; 1 at the true class itself. Silence, class 0, is neither smoothed nor smoothed into. Rows do not sum to 1.
    """
    every = torch.arange(classes, device=targets.device)
    distance = (every - targets[..., None]).abs()
    exponent = distance**2 / 2 if smoothing == "paper" else 2.0**distance / 4
    sounds = (every > 0) & (targets[..., None] > 0)
    near = torch.where(sounds & (distance <= SMOOTHED_DISTANCE), torch.exp(-exponent), 0.0)
    return torch.where(distance == 0, 1.0, near)


def cross_entropy(logits: Tensor, soft_targets: Tensor) -> Tensor:
    """The mean over all frames of -sum(target * log(softmax(logits))), both [..., frames, classes]."""
    return -(soft_targets * logits.log_softmax(-1)).sum(-1).mean()
