"""Pillow's bilinear resize inside a graph, bit-exact.

The official features were computed from images resized by Pillow: a triangle filter as wide as the reduction factor,
in integers with 22 fractional bits, along rows and then along columns, rounded to bytes after each pass. Integer
sums of gathered pixels give the same bytes on every runtime.
"""

import numpy as np
import torch
from torch import Tensor, nn

_FRACTION = 1 << 22


class Resize(nn.Module):
    """Images uint8 [n, height, width, C] -> int32 [n, out_height, out_width, C] in 0 to 255."""

    def __init__(self, height: int, width: int, out_height: int, out_width: int) -> None:
        super().__init__()
        self.along_width = _ResizeAxis(width, out_width, axis=2)
        self.along_height = _ResizeAxis(height, out_height, axis=1)

    def forward(self, images: Tensor) -> Tensor:
        """Return the resized images."""
        return self.along_height(self.along_width(images.int()))


class _ResizeAxis(nn.Module):
    """One of the two passes: a weighted sum of `taps` input pixels per output position, rounded."""

    positions: Tensor  # int64 [taps, out_size]
    weights: Tensor  # int32 [taps, out_size], shaped to broadcast along the axis; columns sum to `_FRACTION`

    def __init__(self, size: int, out_size: int, axis: int) -> None:
        super().__init__()
        self.axis = axis
        positions, weights = _triangle_filter(size, out_size)
        shape = [-1 if dimension == axis else 1 for dimension in range(4)]
        self.register_buffer("positions", torch.from_numpy(positions), persistent=False)
        self.register_buffer("weights", torch.from_numpy(weights).reshape(len(weights), *shape), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        taps = zip(self.positions, self.weights, strict=True)
        total = sum(x.index_select(self.axis, position) * weight for position, weight in taps)
        return _divide(total + _FRACTION // 2, _FRACTION)  # round to nearest


def _divide(numbers: Tensor, by: int) -> Tensor:
    """Divide non-negative integers, truncating: a single `Div`, where the exporter emits several nodes for `//`."""
    if not torch.onnx.is_in_onnx_export():
        return numbers // by
    divisor = torch.tensor(by, dtype=numbers.dtype)
    return torch.onnx.ops.symbolic("Div", (numbers, divisor), dtype=numbers.dtype, shape=numbers.shape)


def _triangle_filter(size: int, out_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return input positions int64 and weights int32, both [taps, out_size], of Pillow's bilinear filter."""
    scale = size / out_size
    support = max(scale, 1.0)
    centre = (np.arange(out_size) + 0.5) * scale
    first = np.maximum(centre - support + 0.5, 0).astype(np.int64)
    positions = first + np.arange(2 * int(np.ceil(support)) + 1)[:, None]
    weights = np.maximum(0.0, 1 - np.abs(positions + 0.5 - centre) / support)
    weights[positions >= size] = 0.0
    weights /= weights.sum(0)
    used = weights.any(1)  # drops taps whose weights are all zero
    return np.minimum(positions, size - 1)[used], (weights * _FRACTION + 0.5).astype(np.int32)[used]
