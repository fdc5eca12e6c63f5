"""Group normalisation with a fast gradient on CPUs.

PyTorch's implementation takes 60 % of a step of the VAE there (2.13, channels last, bfloat16). The same formula as sums
over pixels and two scaled additions takes a tenth of that time. Sums are in float32 for any input type.
"""

from typing import Any

import torch
from torch import Tensor, nn


def use_fast_group_norm(network: nn.Module) -> None:
    """Switch every GroupNorm in `network` to this implementation; weights, keys and results are unchanged."""
    for module in network.modules():
        if type(module) is nn.GroupNorm:
            module.__class__ = _FastGroupNorm


class _FastGroupNorm(nn.GroupNorm):
    def forward(self, input: Tensor) -> Tensor:
        if input.device.type != "cpu" or not self.training:
            return super().forward(input)
        return _GroupNorm.apply(input, self.weight, self.bias, self.num_groups, self.eps)


class _GroupNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        count = x[0].numel() // groups
        mean = _by_group(x.sum((2, 3), dtype=torch.float32), groups) / count
        square = _by_group(torch.linalg.vector_norm(x, dim=(2, 3), dtype=torch.float32).square(), groups) / count
        inverse = (square - mean.square()).clamp(min=0).add(eps).rsqrt()
        ctx.save_for_backward(x, weight, mean, inverse)
        ctx.groups, ctx.count = groups, count
        scale = inverse * weight
        return _scale_and_shift(x, scale, bias - mean * scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        x, weight, mean, inverse = ctx.saved_tensors
        total = gradient.sum((2, 3), dtype=torch.float32)
        product = (gradient * x).sum((2, 3), dtype=torch.float32)
        normalised = (product - mean * total) * inverse  # sum of gradient times normalised map
        by_mean = _by_group(total * weight, ctx.groups) / ctx.count
        by_scale = _by_group(normalised * weight, ctx.groups) / ctx.count
        # dx = inverse * (weight * gradient - by_mean - normalised x * by_scale)
        slope = -inverse.square() * by_scale
        offset = -inverse * by_mean - slope * mean
        dx = _scale_and_shift(gradient, inverse * weight, offset) + _scale_and_shift(x, slope, None)
        return dx, normalised.sum(0), total.sum(0), None, None


def _by_group(channels: Tensor, groups: int) -> Tensor:
    """Sum [batch, channels] over the channels of each group; each channel of the result holds its group's sum."""
    grouped = channels.unflatten(1, (groups, -1))
    return grouped.sum(2, keepdim=True).expand_as(grouped).flatten(1)


def _scale_and_shift(x: Tensor, scale: Tensor, offset: Tensor | None) -> Tensor:
    scale = scale.to(x.dtype)[:, :, None, None]
    return x * scale if offset is None else torch.addcmul(offset.to(x.dtype)[:, :, None, None], x, scale)
