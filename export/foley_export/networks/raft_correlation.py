"""RAFT's all-pairs correlation: built once per pair of images, looked up at every update."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional


class CorrelationPyramid(nn.Module):
    """Correlation of every grid point of the first image with a window around the flow's target in the second image.

    The pyramid has `levels` levels, each half the size of the previous one; the window has (2 * radius + 1)**2 points
    at each level.
    """

    def __init__(self, levels: int, radius: int) -> None:
        super().__init__()
        self.levels = levels
        self.radius = radius

    @property
    def width(self) -> int:
        """Channels of a lookup."""
        return self.levels * (2 * self.radius + 1) ** 2

    def build(self, first: Tensor, second: Tensor) -> Tensor:
        """Build the pyramid from the features [n, C, h, w] of both images.

        Returns:
            [n, h * w, sum of (h / 2**i) * (w / 2**i) + 1]: for every grid point of the first image one row with all
            levels flattened, and a zero at the end, which out-of-image lookups read.
        """
        channels, height, width = first.shape[1:]
        volume = first.flatten(2).transpose(1, 2) @ (second.flatten(2) / math.sqrt(channels))
        level = volume.reshape(-1, 1, height, width)
        rows = [level.flatten(1)]
        for _ in range(self.levels - 1):
            level = functional.avg_pool2d(level, 2)
            rows.append(level.flatten(1))
        pyramid = torch.cat([*rows, torch.zeros_like(rows[0][:, :1])], 1)
        return pyramid.unflatten(0, (-1, height * width))

    def lookup(self, pyramid: Tensor, points: Tensor) -> Tensor:
        """Look up `points` [n, 2, h, w], (x, y) on the second image's feature grid -> correlations [n, width, h, w].

        Bilinear between grid points, zero outside the image. All points of a window have the same offset from the
        grid, so one integer window is gathered and interpolated with a single pair of weights.
        """
        height, width = points.shape[2:]
        sizes = [(height >> level, width >> level) for level in range(self.levels)]
        last = torch.tensor([[w - 1, h - 1] for h, w in sizes], dtype=points.dtype, device=points.device)
        offsets = torch.tensor(list(_level_offsets(sizes)), dtype=points.dtype, device=points.device)
        scales = torch.tensor([1 / 2**level for level in range(self.levels)], dtype=points.dtype, device=points.device)
        window_offsets = torch.arange(-self.radius, self.radius + 2, dtype=points.dtype, device=points.device)

        centres = points.flatten(2).transpose(1, 2).unsqueeze(2) * scales[:, None]  # [n, h * w, levels, 2]
        corners = centres.floor()
        coordinates = corners[..., None] + window_offsets
        clamped = coordinates.maximum(torch.zeros(())).minimum(last[..., None])
        zero_index = pyramid.shape[2] - 1
        outside = zero_index * (coordinates - clamped).abs()  # moves out-of-image indices to the zero
        x, y = (clamped * _strides(sizes, points)[..., None] + outside).unbind(-2)
        indices = (x[..., :, None] + (y + offsets[:, None])[..., None, :]).clamp(
            max=zero_index
        )  # x-major, as in the weights

        window = pyramid.gather(2, indices.flatten(2).long()).transpose(1, 2)
        window = window.unflatten(
            1, (self.levels, len(window_offsets), len(window_offsets))
        )  # [n, levels, x, y, h * w]
        x_weight, y_weight = (centres - corners).permute(0, 2, 3, 1)[:, :, :, None, None].unbind(2)
        window = window[:, :, :-1] * (1 - x_weight) + window[:, :, 1:] * x_weight
        found = window[:, :, :, :-1] * (1 - y_weight) + window[:, :, :, 1:] * y_weight
        return found.flatten(1, 3).unflatten(2, (height, width))


def _strides(sizes: Iterable[tuple[int, int]], like: Tensor) -> Tensor:
    """Return the strides of x and y within a row of the pyramid: [levels, 2]."""
    return torch.tensor([[1, width] for _, width in sizes], dtype=like.dtype, device=like.device)


def _level_offsets(sizes: Iterable[tuple[int, int]]) -> Iterable[int]:
    """Yield the start offset of each level within a row of the pyramid."""
    offset = 0
    for height, width in sizes:
        yield offset
        offset += height * width
