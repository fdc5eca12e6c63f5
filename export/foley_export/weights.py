"""Seeded weights: every tensor is a function of its official key, its shape and a salt.

The rule is that of the golden vectors (`shared/reference/README.md`), so a seeded network can be compared numerically
with the official implementation.
"""

import math
import os
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch

from foley_export.networks.network import OfficialModule

_COMPUTED_BUFFERS = ("spectrogram_extractor", "logmel_extractor", "attn_mask", "mel_transform")  # computed, not trained


AnyModule = TypeVar("AnyModule", bound=OfficialModule)


def seeded_tensor(key: str, shape: Iterable[int], salt: str = "") -> np.ndarray:
    """Return the seeded float32 weights of the tensor with the official `key`."""
    shape = tuple(shape)
    random = np.random.RandomState(zlib.crc32((salt + key).encode()) & 0xFFFFFFFF)
    z = random.standard_normal(shape)
    if key.endswith("running_var"):
        w = 1 + 0.2 * np.abs(z)
    elif key.endswith("running_mean"):
        w = 0.1 * z
    elif len(shape) >= 2:
        w = z / math.sqrt(math.prod(shape[1:]))
    elif key.endswith("weight"):
        w = 1 + 0.1 * z
    else:
        w = 0.02 * z
    return np.asarray(w, np.float32)


def fill(network: AnyModule, salt: str = "") -> AnyModule:
    """Set the seeded weights of `network` in place and return it, in eval mode."""

    def seeded(key: str) -> torch.Tensor:
        tensor = seeded_tensor(network.checkpoint_key(key), network.checkpoint_shape(key), salt)
        return network.from_checkpoint(key, torch.from_numpy(tensor))

    keys = [key for key, tensor in network.state_dict().items() if _is_weight(network.checkpoint_key(key), tensor)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # NumPy's generators release the GIL
        weights = dict(zip(keys, pool.map(seeded, keys), strict=True))
    network.load_state_dict(weights, strict=False)
    return network.eval()


def _is_weight(official: str, tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() and "." in official and not any(part in official for part in _COMPUTED_BUFFERS)
