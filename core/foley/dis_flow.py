"""Optical flow with OpenCV's DIS (Kroeger et al., "Fast Optical Flow using Dense Inverse Search", ECCV 2016).

Implements the contract of the stage `optical_flow` without a network. Requires the extra `flow` of foley-core.
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
    """DIS with its buffers. Not thread-safe; the result of a call does not depend on earlier calls."""

    def __init__(self, config: DisFlowConfig) -> None:
        self._method = cv2.DISOpticalFlow.create(_PRESETS[config.preset])

    def flow(self, frames: Images) -> Images:
        """Compute the optical flow from each frame to the next.

        Args:
            frames: RGB images, uint8 [n + 1, 256, 344, 3].

        Returns:
            The displacement (x, y), uint8 [n, 256, 344, 2]: -20..20 pixels, clipped, mapped to 0..255 and truncated.
        """
        grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
        pixels = np.zeros((*frames[1:].shape[:3], 2), np.float32)  # DIS reads it as the initial flow
        for (frame, following), pair in zip(pairwise(grey), pixels, strict=True):
            self._method.calc(frame, following, pair)
        levels = (pixels.clip(-clip.LARGEST_FLOW, clip.LARGEST_FLOW) + clip.LARGEST_FLOW) * (
            255 / (2 * clip.LARGEST_FLOW)
        )
        return levels.astype(np.uint8)
