"""Optical flow of a video by OpenCV's DIS (Kroeger et al., "Fast Optical Flow using Dense Inverse Search", ECCV 2016).

The contract of the `optical_flow` stage without a network. Needs the extra `flow` of foley-core.
"""

from itertools import pairwise

import cv2
import numpy as np
import numpy.typing as npt

from foley import clip
from foley.manifest import DisFlowConfig

Images = npt.NDArray[np.uint8]

_PRESETS = {
    "ultrafast": cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST,
    "fast": cv2.DISOPTICAL_FLOW_PRESET_FAST,
    "medium": cv2.DISOPTICAL_FLOW_PRESET_MEDIUM,
}


class DisFlow:
    """The method and its buffers: not for two threads at once. No call depends on those before it."""

    def __init__(self, config: DisFlowConfig) -> None:
        self._method = cv2.DISOpticalFlow.create(_PRESETS[config.preset])

    def flow(self, frames: Images) -> Images:
        """Frames uint8 [n+1, 256, 344, 3] (RGB) -> flow uint8 [n, 256, 344, 2] from each frame to the next.

        (x, y) of -20..20 pixels as 0..255; what is larger is cut off, fractions are truncated.
        """
        grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
        pixels = np.zeros((*frames[1:].shape[:3], 2), np.float32)  # to begin with, nothing has moved
        for (frame, following), pair in zip(pairwise(grey), pixels, strict=True):
            self._method.calc(frame, following, pair)
        levels = (pixels.clip(-clip.LARGEST_FLOW, clip.LARGEST_FLOW) + clip.LARGEST_FLOW) * (
            255 / (2 * clip.LARGEST_FLOW)
        )
        return levels.astype(np.uint8)
