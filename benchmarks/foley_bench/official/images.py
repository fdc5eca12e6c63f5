"""Frames and flow between the official scripts: written as JPEG files, read back, and made smaller by Pillow."""

from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

Images = npt.NDArray[np.uint8]

QUALITY = 75  # torchvision.io.write_jpeg's default
_INPUT_SIZE = (224, 224)
_MEAN_BGR = (104.0, 117.0, 128.0)
_FLOW_AT_REST = 128.0


def through_jpeg(picture: Images, file: Path, mode: Literal["RGB", "L"] = "RGB") -> Images:
    """A picture [h, w, 3] written to `file` and read back, as [h, w, 3] or, with mode "L", as [h, w]."""
    Image.fromarray(picture).save(file, "JPEG", quality=QUALITY)
    with Image.open(file) as image:
        return np.asarray(image.convert(mode))


def flow_through_jpeg(flow: Images, folder: Path) -> Images:
    """Flow [h, w, 2], each direction through a file of its own: in colour, of three equal channels."""
    parts = {
        f"flow_{name}.jpg": np.repeat(part[..., None], 3, axis=2)
        for name, part in zip("xy", np.moveaxis(flow, 2, 0), strict=True)
    }
    return np.stack([through_jpeg(part, folder / name, "L") for name, part in parts.items()], axis=2)


def rgb_input(frame: Images) -> Tensor:
    """A frame [256, 344, 3] as BN-Inception sees it: [3 (BGR), 224, 224], mean removed."""
    return _small(frame).flip(0) - torch.tensor(_MEAN_BGR)[:, None, None]


def flow_input(flow: Images) -> Tensor:
    """Flow [256, 344, 2] as BN-Inception sees it: [2, 224, 224], 0 meaning at rest."""
    return torch.cat([_small(part) for part in np.moveaxis(flow, 2, 0)]) - _FLOW_AT_REST


def _small(picture: Images) -> Tensor:
    """A picture [h, w] or [h, w, C] as float [C, 224, 224]."""
    small = np.atleast_3d(np.array(Image.fromarray(picture).resize(_INPUT_SIZE, Image.Resampling.BILINEAR)))
    return torch.from_numpy(small).permute(2, 0, 1).float()
