"""DIS optical flow measures the shift of an image in the units of the contract."""

from typing import get_args

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foley import clip
from foley.dis_flow import DisFlow
from foley.manifest import DisFlowConfig

LEVEL = 2 * clip.LARGEST_FLOW / 255  # pixels from one byte to the next
PRESETS = get_args(DisFlowConfig.model_fields["preset"].annotation)
MARGIN = 64  # in pixels; excluded, because content enters and leaves there


def texture(seed: int) -> np.ndarray:
    """A coloured texture, uint8 [256 + 2 * MARGIN, 344 + 2 * MARGIN, 3]."""
    shape = (clip.FRAME_HEIGHT + 2 * MARGIN, clip.FRAME_WIDTH + 2 * MARGIN, 3)
    noise = np.random.default_rng(seed).standard_normal(shape, np.float32)
    details = [
        cv2.GaussianBlur(noise, (0, 0), size) * size for size in (3, 9, 27)
    ]  # one per level of the pyramid of DIS
    return (128 + 60 * np.sum(details, axis=0)).clip(0, 255).astype(np.uint8)


def shifted(image: np.ndarray, x: int, y: int) -> np.ndarray:
    """Return the view of `image` after a shift by (x, y) pixels."""
    rows = slice(MARGIN - y, MARGIN - y + clip.FRAME_HEIGHT)
    return image[rows, MARGIN - x : MARGIN - x + clip.FRAME_WIDTH]


def pixels(flow: np.ndarray) -> np.ndarray:
    return flow * LEVEL - clip.LARGEST_FLOW


@given(x=st.integers(-12, 12), y=st.integers(-12, 12), preset=st.sampled_from(PRESETS), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=20)
def test_flow_equals_image_shift(x, y, preset, seed):
    image = texture(seed)
    frames = np.stack([shifted(image, 0, 0), shifted(image, x, y)])
    flow = DisFlow(DisFlowConfig(preset=preset)).flow(frames)
    assert flow.dtype == np.uint8
    assert flow.shape == (1, clip.FRAME_HEIGHT, clip.FRAME_WIDTH, 2)
    inner = pixels(flow[0, MARGIN:-MARGIN, MARGIN:-MARGIN])
    np.testing.assert_allclose(np.median(inner, axis=(0, 1)), (x, y), atol=3 * LEVEL)


def test_no_motion_is_byte_127():
    frames = np.stack([shifted(texture(0), 0, 0)] * 2)
    assert (DisFlow(DisFlowConfig()).flow(frames) == 127).all()  # 127.5 truncated, as for RAFT


@pytest.mark.parametrize(("x", "byte"), [(32, 255), (-32, 0)])
def test_large_flow_is_clipped(x, byte):
    image = texture(1)
    flow = DisFlow(DisFlowConfig(preset="medium")).flow(np.stack([shifted(image, 0, 0), shifted(image, x, 0)]))
    assert np.median(flow[0, MARGIN:-MARGIN, MARGIN:-MARGIN, 0]) == byte


def test_pairs_are_independent():
    image = texture(2)
    frames = np.stack([shifted(image, x, y) for x, y in ((0, 0), (3, 1), (9, -4), (9, -4), (2, 2))])
    dis = DisFlow(DisFlowConfig())
    whole = dis.flow(frames)
    assert whole.shape == (4, clip.FRAME_HEIGHT, clip.FRAME_WIDTH, 2)
    np.testing.assert_array_equal(np.concatenate([dis.flow(frames[:3]), dis.flow(frames[2:])]), whole)
    for few in (0, 1):
        assert dis.flow(frames[:few]).shape == (0, clip.FRAME_HEIGHT, clip.FRAME_WIDTH, 2)
