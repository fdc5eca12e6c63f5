"""DIS sees how far a picture has moved, and says it in the bytes of the contract."""

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
MARGIN = 64  # of the ground around the picture, and left out at its edges, where what is seen comes and goes


def ground(seed: int) -> np.ndarray:
    """A coloured texture, uint8 [256 + 2 * MARGIN, 344 + 2 * MARGIN, 3]."""
    shape = (clip.FRAME_HEIGHT + 2 * MARGIN, clip.FRAME_WIDTH + 2 * MARGIN, 3)
    noise = np.random.default_rng(seed).standard_normal(shape, np.float32)
    details = [cv2.GaussianBlur(noise, (0, 0), size) * size for size in (3, 9, 27)]  # for each size of DIS' pyramid
    return (128 + 60 * np.sum(details, axis=0)).clip(0, 255).astype(np.uint8)


def moved(picture: np.ndarray, x: int, y: int) -> np.ndarray:
    """What is seen of `picture` when it has moved by (x, y) pixels."""
    rows = slice(MARGIN - y, MARGIN - y + clip.FRAME_HEIGHT)
    return picture[rows, MARGIN - x : MARGIN - x + clip.FRAME_WIDTH]


def pixels(flow: np.ndarray) -> np.ndarray:
    return flow * LEVEL - clip.LARGEST_FLOW


@given(x=st.integers(-12, 12), y=st.integers(-12, 12), preset=st.sampled_from(PRESETS), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=20)
def test_flow_is_the_shift_of_the_picture(x, y, preset, seed):
    picture = ground(seed)
    frames = np.stack([moved(picture, 0, 0), moved(picture, x, y)])
    flow = DisFlow(DisFlowConfig(preset=preset)).flow(frames)
    assert flow.dtype == np.uint8
    assert flow.shape == (1, clip.FRAME_HEIGHT, clip.FRAME_WIDTH, 2)
    inner = pixels(flow[0, MARGIN:-MARGIN, MARGIN:-MARGIN])
    np.testing.assert_allclose(np.median(inner, axis=(0, 1)), (x, y), atol=3 * LEVEL)


def test_no_motion_is_the_byte_that_truncation_makes_of_the_middle():
    frames = np.stack([moved(ground(0), 0, 0)] * 2)
    assert (DisFlow(DisFlowConfig()).flow(frames) == 127).all()  # 127.5, as RAFT's bytes


@pytest.mark.parametrize(("x", "byte"), [(32, 255), (-32, 0)])
def test_what_is_faster_than_the_bytes_can_say_is_cut_off(x, byte):
    picture = ground(1)
    flow = DisFlow(DisFlowConfig(preset="medium")).flow(np.stack([moved(picture, 0, 0), moved(picture, x, 0)]))
    assert np.median(flow[0, MARGIN:-MARGIN, MARGIN:-MARGIN, 0]) == byte


def test_a_pair_does_not_depend_on_the_pairs_before_it():
    picture = ground(2)
    frames = np.stack([moved(picture, x, y) for x, y in ((0, 0), (3, 1), (9, -4), (9, -4), (2, 2))])
    dis = DisFlow(DisFlowConfig())
    whole = dis.flow(frames)
    assert whole.shape == (4, clip.FRAME_HEIGHT, clip.FRAME_WIDTH, 2)
    np.testing.assert_array_equal(np.concatenate([dis.flow(frames[:3]), dis.flow(frames[2:])]), whole)
    for few in (0, 1):
        assert dis.flow(frames[:few]).shape == (0, clip.FRAME_HEIGHT, clip.FRAME_WIDTH, 2)
