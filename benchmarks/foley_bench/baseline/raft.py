"""Optical flow as in the official pipeline: RAFT, one pair of frames at a time.

torchvision's `raft_large`, step by step, on the layers of this project's `OpticalFlow`: both frames of every pair are
encoded, the recurrent units convolve hidden state, context and motion together, the flow is brought to full size after
every update, and correlations are looked up with `grid_sample`.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from foley import clip
from foley_export.networks.optical_flow import OpticalFlow
from foley_export.networks.raft_encoder import REDUCTION

_NEIGHBOURS = 9


def pair_flow(raft: OpticalFlow, first: Tensor, second: Tensor) -> Tensor:
    """Return the flow float [2, 256, 344] in pixels, (x, y), between two frames uint8 [256, 344, 3]."""
    images = torch.stack([first, second]).permute(0, 3, 1, 2) / 255
    images = (images - 0.5) / 0.5
    features = raft.feature_encoder(images)
    pyramid = correlation_pyramid(features[:1], features[1:], raft.correlation.levels)
    hidden, context = raft.context_encoder(images[:1]).split(
        [raft.hidden_width, features.shape[1] - raft.hidden_width], 1
    )
    hidden, context = hidden.tanh(), context.relu()
    origin = _pixel_grid(features)
    points = origin
    flow = origin - origin
    for _ in range(raft.updates):
        correlation = lookup(pyramid, points, raft.correlation.radius)
        motion = raft.update_block.motion_encoder(points - origin, correlation)
        for gru in raft.update_block.recurrent_block.children():
            hidden = gru_step(gru, hidden, torch.cat([context, motion], 1))
        points = points + raft.update_block.flow_head(hidden)
        flow = upsample(points - origin, raft.mask_predictor(hidden))  # only the last one is used
    return flow[0]


def to_bytes(flow: Tensor) -> Tensor:
    """Convert flow [2, 256, 344] in pixels to uint8 [256, 344, 2]: -20 to 20 pixels to 0 to 255, truncated."""
    levels = (flow.clamp(-clip.LARGEST_FLOW, clip.LARGEST_FLOW) + clip.LARGEST_FLOW) * (255 / (2 * clip.LARGEST_FLOW))
    return levels.to(torch.uint8).permute(1, 2, 0)


def correlation_pyramid(first: Tensor, second: Tensor, levels: int) -> list[Tensor]:
    """Build the correlation pyramid from the features [1, C, h, w] of both images.

    [h * w, 1, h / 2**level, w / 2**level] each.
    """
    _, channels, height, width = first.shape
    volume = first.flatten(2).transpose(1, 2) @ second.flatten(2) / math.sqrt(channels)
    pyramid = [volume.reshape(height * width, 1, height, width)]
    for _ in range(levels - 1):
        pyramid.append(functional.avg_pool2d(pyramid[-1], kernel_size=2, stride=2))
    return pyramid


def lookup(pyramid: Sequence[Tensor], points: Tensor, radius: int) -> Tensor:
    """Look up `points` [1, 2, h, w], (x, y), at every level: [1, levels * (2 * radius + 1)**2, h, w]."""
    offsets = torch.linspace(-radius, radius, 2 * radius + 1)
    window = torch.stack(torch.meshgrid(offsets, offsets, indexing="ij"), -1)
    centres = points.permute(0, 2, 3, 1).reshape(-1, 1, 1, 2)
    found = []
    for level, image in enumerate(pyramid):
        size = torch.tensor([image.shape[3], image.shape[2]])
        grid = (centres / 2**level + window) * 2 / (size - 1) - 1
        found.append(functional.grid_sample(image, grid, align_corners=True).flatten(1))
    return torch.cat(found, 1).T.reshape(1, -1, *points.shape[2:])


def gru_step(gru: Any, hidden: Tensor, inputs: Tensor) -> Tensor:
    """Run one step of a `ConvGRU` with every convolution over all of its inputs."""

    def convolve(convolution: torch.nn.Conv2d, hidden: Tensor) -> Tensor:
        height, width = convolution.kernel_size
        return functional.conv2d(
            torch.cat([hidden, inputs], 1), convolution.weight, convolution.bias, padding=(height // 2, width // 2)
        )

    update, reset = convolve(gru.convz, hidden).sigmoid(), convolve(gru.convr, hidden).sigmoid()
    candidate = convolve(gru.convq, reset * hidden).tanh()
    return (1 - update) * hidden + update * candidate


def upsample(flow: Tensor, scores: Tensor) -> Tensor:
    """Upsample flow [1, 2, h, w] with RAFT's convex combination, weighted by the softmax of `scores`."""
    height, width = flow.shape[2:]
    weights = scores.reshape(1, 1, _NEIGHBOURS, REDUCTION**2, height, width).softmax(2)
    neighbours = functional.unfold(REDUCTION * flow, 3, padding=1).reshape(1, 2, _NEIGHBOURS, 1, height, width)
    return functional.pixel_shuffle((weights * neighbours).sum(2).flatten(1, 2), REDUCTION)


def _pixel_grid(features: Tensor) -> Tensor:
    """Return the (x, y) coordinates of the feature grid [n, C, h, w]: [1, 2, h, w]."""
    rows, columns = torch.arange(features.shape[2]), torch.arange(features.shape[3])
    return torch.stack(torch.meshgrid(columns, rows, indexing="xy"))[None].float()
