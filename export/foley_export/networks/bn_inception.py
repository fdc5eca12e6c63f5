"""BN-Inception as the feature extractor of both streams: RGB frames and optical flow.

Ioffe & Szegedy, "Batch Normalization" (2015), in the ImageNet variant whose layer names the official checkpoint
`bn_inception-9f5701afb96c8044.pth` uses. Preprocessing is part of the graphs.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from foley import clip
from foley.manifest import FeaturesConfig, Manifest
from foley_export.networks.network import Network
from foley_export.networks.resize import Resize

_INPUT_SIZE = 224
_STEM = "conv1_7x7_s2"
_STEM_WEIGHT = f"network.{_STEM}.weight"
_MEAN_BGR = (104.0, 117.0, 128.0)
_ZERO_FLOW = 128.0


class RgbFeatures(Network):
    """Frames uint8 [n+1, 256, 344, 3] (RGB) -> features float [n, 1024] of all frames but the first.

    The first frame is the last one of the previous chunk: optical flow needs it, this stream does not.
    """

    stage_name = "rgb_features"
    mean: Tensor

    def __init__(self, manifest: Manifest) -> None:
        super().__init__(manifest)
        self.network = BNInception(manifest.rgb_features, in_channels=3)
        self.resize = _resize()
        self.register_buffer("mean", torch.tensor(_MEAN_BGR).reshape(3, 1, 1), persistent=False)

    @staticmethod
    def checkpoint_key(key: str) -> str:
        """Return the official checkpoint's key for `key`."""
        return key.removeprefix("network.")

    def network_input(self, frames: Tensor) -> Tensor:
        """Preprocess frames uint8 [n, 256, 344, 3] to BN-Inception's input: [n, 3 (BGR), 224, 224], mean subtracted."""
        return _channels_first(self.resize(frames).flip(-1)) - self.mean

    def forward(self, frames: Tensor) -> Tensor:
        """Return the features [n, 1024] of `frames[1:]`."""
        return self.network(self.network_input(frames[1:]))


class FlowFeatures(Network):
    """Flow uint8 [n, 256, 344, 2], where 128 is zero motion -> features float [n, 1024]."""

    stage_name = "flow_features"

    def __init__(self, manifest: Manifest) -> None:
        super().__init__(manifest)
        self.network = BNInception(manifest.flow_features, in_channels=2)
        self.resize = _resize()

    @staticmethod
    def checkpoint_key(key: str) -> str:
        """Return the official checkpoint's key for `key`."""
        return key.removeprefix("network.")

    def checkpoint_shape(self, key: str) -> tuple[int, ...]:
        """Return the shape in the checkpoint: the first convolution there has 3 input channels instead of 2."""
        shape = super().checkpoint_shape(key)
        return (shape[0], 3, *shape[2:]) if key == _STEM_WEIGHT else shape

    def from_checkpoint(self, key: str, tensor: Tensor) -> Tensor:
        """Convert a tensor: the first convolution is averaged over its RGB inputs and repeated for both flow axes."""
        if key == _STEM_WEIGHT:
            tensor = tensor.mean(1, keepdim=True).repeat(1, 2, 1, 1)
        return super().from_checkpoint(key, tensor)

    def network_input(self, flow: Tensor) -> Tensor:
        """Preprocess flow uint8 [n, 256, 344, 2] to BN-Inception's input: [n, 2, 224, 224], 0 for zero motion."""
        return _channels_first(self.resize(flow)) - _ZERO_FLOW

    def forward(self, flow: Tensor) -> Tensor:
        """Return the features [n, 1024] of `flow`."""
        return self.network(self.network_input(flow))


def _resize() -> Resize:
    return Resize(clip.FRAME_HEIGHT, clip.FRAME_WIDTH, _INPUT_SIZE, _INPUT_SIZE)


def _channels_first(images: Tensor) -> Tensor:
    """Convert int [n, height, width, C] to float [n, C, height, width]."""
    return images.permute(0, 3, 1, 2).float()


class _Block(NamedTuple):
    """Channel counts of an inception block.

    If `one` and `pool` are None, the block halves the spatial size and passes its pooled input through.
    """

    name: str
    one: int | None  # 1x1
    three: tuple[int, int]  # 1x1 reduction, 3x3
    double: tuple[int, int]  # 1x1 reduction, 3x3 twice
    pool: int | None  # 1x1 after pooling

    @property
    def stride(self) -> int:
        return 1 if self.one else 2


_BLOCKS = (
    _Block("inception_3a", 64, (64, 64), (64, 96), 32),
    _Block("inception_3b", 64, (64, 96), (64, 96), 64),
    _Block("inception_3c", None, (128, 160), (64, 96), None),
    _Block("inception_4a", 224, (64, 96), (96, 128), 128),
    _Block("inception_4b", 192, (96, 128), (96, 128), 128),
    _Block("inception_4c", 160, (128, 160), (128, 160), 128),
    _Block("inception_4d", 96, (128, 192), (160, 192), 128),
    _Block("inception_4e", None, (128, 192), (192, 256), None),
    _Block("inception_5a", 352, (192, 320), (160, 224), 128),
    _Block("inception_5b", 352, (192, 320), (192, 224), 128),
)
_MAX_POOL_BLOCK = "inception_5b"  # the other blocks of stride 1 use average pooling


class BNInception(nn.Module):
    """Images [n, in_channels, 224, 224] -> globally pooled features [n, 1024 / width_divisor].

    Layers are not nested, as in the checkpoint: the convolution `<name>` and its batch normalisation `<name>_bn`.
    """

    def __init__(self, config: FeaturesConfig, in_channels: int) -> None:
        super().__init__()

        def add(name: str, inputs: int, outputs: int, kernel: int, stride: int = 1) -> int:
            self.add_module(name, nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2))
            self.add_module(f"{name}_bn", nn.BatchNorm2d(outputs))
            return outputs

        def narrow(channels: int) -> int:
            return channels // config.width_divisor

        width = add(_STEM, in_channels, narrow(64), 7, stride=2)
        width = add("conv2_3x3_reduce", width, narrow(64), 1)
        width = add("conv2_3x3", width, narrow(192), 3)
        for block in _BLOCKS:
            three = add(f"{block.name}_3x3_reduce", width, narrow(block.three[0]), 1)
            three = add(f"{block.name}_3x3", three, narrow(block.three[1]), 3, block.stride)
            double = add(f"{block.name}_double_3x3_reduce", width, narrow(block.double[0]), 1)
            double = add(f"{block.name}_double_3x3_1", double, narrow(block.double[1]), 3)
            double = add(f"{block.name}_double_3x3_2", double, narrow(block.double[1]), 3, block.stride)
            one = add(f"{block.name}_1x1", width, narrow(block.one), 1) if block.one else 0
            pool = add(f"{block.name}_pool_proj", width, narrow(block.pool), 1) if block.pool else width
            width = one + three + double + pool

    def forward(self, x: Tensor) -> Tensor:
        """Return the globally pooled features of images `x`."""
        x = _max_pool(self._layer(_STEM, x))
        x = _max_pool(self._layer("conv2_3x3", self._layer("conv2_3x3_reduce", x)))
        for block in _BLOCKS:
            x = self._block(block, x)
        return x.mean((2, 3))

    def _layer(self, name: str, x: Tensor) -> Tensor:
        return functional.relu(self.get_submodule(f"{name}_bn")(self.get_submodule(name)(x)))

    def _block(self, block: _Block, x: Tensor) -> Tensor:
        def path(x: Tensor, *layers: str) -> Tensor:
            for layer in layers:
                x = self._layer(f"{block.name}_{layer}", x)
            return x

        three = path(x, "3x3_reduce", "3x3")
        double = path(x, "double_3x3_reduce", "double_3x3_1", "double_3x3_2")
        if block.stride == 2:
            return torch.cat([three, double, _max_pool(x)], 1)
        pool = functional.max_pool2d if block.name == _MAX_POOL_BLOCK else functional.avg_pool2d
        return torch.cat([path(x, "1x1"), three, double, path(pool(x, 3, 1, 1), "pool_proj")], 1)


def _max_pool(x: Tensor) -> Tensor:
    """Max pooling with `ceil_mode`, as in Caffe: the last window may extend past the edge."""
    return functional.max_pool2d(x, 3, 2, ceil_mode=True)
