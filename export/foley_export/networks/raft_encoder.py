"""RAFT's encoder: image features at 1/8 resolution."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.nn import functional

REDUCTION = 8  # downsampling factor of height and width


class Encoder(nn.Module):
    """Images [n, 3, height, width] in [-1, 1] -> features [n, widths[-1], height / 8, width / 8].

    Convolutions followed by a normalisation keep their biases, as in the published weights.
    """

    def __init__(self, widths: Sequence[int], norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        stem, first, second, third, out = widths
        self.convnormrelu = _conv_norm(3, stem, 7, 2, norm)
        self.layer1 = nn.Sequential(ResidualBlock(stem, first, 1, norm), ResidualBlock(first, first, 1, norm))
        self.layer2 = nn.Sequential(ResidualBlock(first, second, 2, norm), ResidualBlock(second, second, 1, norm))
        self.layer3 = nn.Sequential(ResidualBlock(second, third, 2, norm), ResidualBlock(third, third, 1, norm))
        self.conv = nn.Conv2d(third, out, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Return the features of `images`."""
        x = functional.relu(self.convnormrelu(images))
        return self.conv(self.layer3(self.layer2(self.layer1(x))))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut, which is a 1x1 convolution if the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.convnormrelu1 = _conv_norm(inputs, outputs, 3, stride, norm)
        self.convnormrelu2 = _conv_norm(outputs, outputs, 3, 1, norm)
        same = stride == 1 and inputs == outputs
        self.downsample = nn.Identity() if same else _conv_norm(inputs, outputs, 1, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output [n, outputs, h / stride, w / stride]."""
        y = functional.relu(self.convnormrelu1(x))
        y = functional.relu(self.convnormrelu2(y))
        return functional.relu(self.downsample(x) + y)


def _conv_norm(inputs: int, outputs: int, kernel: int, stride: int, norm: Callable[[int], nn.Module]) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2), norm(outputs))
