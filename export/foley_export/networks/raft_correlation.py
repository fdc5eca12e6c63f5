"""RAFT's all-pairs correlation: built once for a pair of images, looked up at every update."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


class CorrelationPyramid(nn.Module):
    """How alike every place of the first image is to the places around where the flow points in the second.

    `levels` halvings of the second image widen the view; at each, (2 * radius + 1)**2 places are read.
    """

    offsets: Tensor  # float [side, side, 2]: (x, y), x along the first axis as in the published weights

    def __init__(self, levels: int, radius: int) -> None:
        super().__init__()
        self.levels = levels
        side = torch.arange(-radius, radius + 1, dtype=torch.float32)
        self.register_buffer("offsets", torch.stack(torch.meshgrid(side, side, indexing="ij"), -1), persistent=False)

    @property
    def width(self) -> int:
        """Channels that a lookup returns."""
        return self.levels * self.offsets[..., 0].numel()

    def build(self, first: Tensor, second: Tensor) -> list[Tensor]:
        """Features of both images, [n, C, h, w] -> the correlations [n * h * w, 1, h / 2**i, w / 2**i]."""
        channels, height, width = first.shape[1:]
        volume = first.flatten(2).transpose(1, 2) @ second.flatten(2) / math.sqrt(channels)
        pyramid = [volume.reshape(-1, 1, height, width)]
        for _ in range(self.levels - 1):
            pyramid.append(functional.avg_pool2d(pyramid[-1], 2))
        return pyramid

    def look_up(self, pyramid: list[Tensor], points: Tensor) -> Tensor:
        """`points` [n, 2, h, w], (x, y) in the second image's features -> correlations [n, width, h, w].

        Between places linear, outside the image zero.
        """
        height, width = points.shape[2:]
        centres = points.permute(0, 2, 3, 1).reshape(-1, 1, 1, 2)
        found = []
        for level, volume in enumerate(pyramid):
            last = volume.new_tensor([volume.shape[3] - 1, volume.shape[2] - 1])
            grid = 2 * (centres / 2**level + self.offsets) / last - 1
            found.append(functional.grid_sample(volume, grid, align_corners=True).flatten(1))
        return torch.cat(found, 1).unflatten(0, (-1, height, width)).permute(0, 3, 1, 2)
