"""Image processing of the official scripts: JPEG at the default quality, then Pillow's resize."""

import io
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

Images = npt.NDArray[np.uint8]

QUALITY = 75  # torchvision.io.write_jpeg's default
_INPUT_SIZE = (224, 224)
_MEAN_BGR = np.array([104.0, 117.0, 128.0], np.float32)
_ZERO_FLOW = 128.0


def through_jpeg(images: Images) -> Images:
    """Encode and decode RGB images [n, h, w, 3]."""
    return np.stack([_through_jpeg(image, "RGB") for image in images])


def flow_through_jpeg(flow: Images) -> Images:
    """Encode and decode flow [n, h, w, 2], each direction as a colour image of three equal channels."""
    decoded = [
        [_through_jpeg(np.repeat(part[..., None], 3, axis=2), "L") for part in np.moveaxis(one, 2, 0)] for one in flow
    ]
    return np.moveaxis(np.array(decoded, np.uint8), 1, 3)


def rgb_input(frame: Tensor) -> Tensor:
    """Return BN-Inception's input [3 (BGR), 224, 224], mean subtracted, for a frame uint8 [256, 344, 3]."""
    return _resized(frame).flip(0) - torch.from_numpy(_MEAN_BGR)[:, None, None]


def flow_input(flow: Tensor) -> Tensor:
    """Return BN-Inception's input [2, 224, 224], 0 for zero motion, for flow uint8 [256, 344, 2]."""
    return torch.cat([_resized(part) for part in flow.unbind(2)]) - _ZERO_FLOW


def _through_jpeg(image: Images, mode: Literal["RGB", "L"]) -> Images:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=QUALITY)
    return np.asarray(Image.open(file).convert(mode))


def _resized(image: Tensor) -> Tensor:
    """Resize an image [h, w] or [h, w, C] to float [C, 224, 224]."""
    pixels = Image.fromarray(image.cpu().contiguous().numpy())
    small = np.atleast_3d(np.array(pixels.resize(_INPUT_SIZE, Image.Resampling.BILINEAR)))
    return torch.from_numpy(small).permute(2, 0, 1).float()
