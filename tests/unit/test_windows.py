"""Windows of long videos cover the duration, and cross-fades have no audible seams."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foley import clip
from foley.envelope import frames, samples
from foley.windows import OVERHANG_S, OVERLAP_S, crossfade, cut, window_starts_s

durations = st.floats(0.1, 100.0) | st.integers(1_600, 1_600_000).map(lambda n: n / clip.SAMPLE_RATE_HZ)
SECOND = clip.SAMPLE_RATE_HZ


@given(duration_s=durations)
@settings(deadline=None)
def test_windows_cover_every_duration_without_excess(duration_s):
    starts = window_starts_s(duration_s)
    assert starts[0] == 0
    assert np.allclose(np.diff(starts), clip.CLIP_SECONDS - OVERLAP_S)
    assert starts[-1] + clip.CLIP_SECONDS + OVERHANG_S >= duration_s - 1e-6
    if len(starts) > 1:
        assert starts[-2] + clip.CLIP_SECONDS + OVERHANG_S < duration_s


@pytest.mark.parametrize(
    ("duration_s", "count"), [(0.1, 1), (10.0, 1), (300 / 29.97, 1), (10.04, 2), (19.0, 2), (19.04, 3), (100.0, 11)]
)
def test_number_of_windows(duration_s, count):
    assert len(window_starts_s(duration_s)) == count


@given(duration_s=durations, level=st.floats(0, 1, width=32))
@settings(deadline=None, max_examples=50)
def test_linear_crossfade_preserves_constant(duration_s, level):
    pieces = [np.full(clip.CLIP_ENVELOPE, level, np.float32)] * len(window_starts_s(duration_s))
    joined = crossfade(pieces, len(pieces), clip.ENVELOPE_RATE_HZ, frames(duration_s), "linear")
    assert joined.dtype == np.float32
    assert joined.shape == (frames(duration_s),)
    np.testing.assert_allclose(joined, level, rtol=1e-6)


def test_linear_crossfade_restores_cut_curve():
    curve = np.random.default_rng(0).uniform(size=frames(23.4)).astype(np.float32)
    starts = window_starts_s(23.4)
    pieces = [cut(curve, round(start * clip.ENVELOPE_RATE_HZ), clip.PADDED_ENVELOPE) for start in starts]
    joined = crossfade(pieces, len(pieces), clip.ENVELOPE_RATE_HZ, len(curve), "linear")
    np.testing.assert_allclose(joined, curve, rtol=1e-6)


def test_equal_power_crossfade_preserves_loudness_of_noise():
    length = samples(28.0)
    pieces = np.random.default_rng(0).standard_normal((3, clip.PADDED_SAMPLES), np.float32)
    joined = crossfade(iter(pieces), len(pieces), SECOND, length, "equal_power")
    assert joined.shape == (length,)
    quarters = np.sqrt(np.mean(np.square(joined.reshape(-1, SECOND // 4)), axis=1))  # RMS of every quarter second
    np.testing.assert_allclose(quarters, 1, rtol=0.05)
    overlaps = np.sqrt([np.mean(np.square(joined[start * SECOND : (start + 1) * SECOND])) for start in (9, 18)])
    np.testing.assert_allclose(overlaps, 1, rtol=0.02)


@given(duration_s=durations)
@settings(deadline=None, max_examples=10)
def test_joined_sound_has_exact_length_of_video(duration_s):
    pieces = [np.ones(clip.PADDED_SAMPLES, np.float32)] * len(window_starts_s(duration_s))
    joined = crossfade(pieces, len(pieces), SECOND, samples(duration_s), "equal_power")
    assert len(joined) == samples(duration_s)
    assert (joined >= 1 - 1e-6).all()  # no gap: the squared weights of a seam sum to one, the weights to more
    outside = joined[: 9 * SECOND]
    np.testing.assert_array_equal(outside, 1)


@given(
    rows=st.integers(0, 20), start=st.integers(0, 25), length=st.integers(0, 25), columns=st.sampled_from([(), (3,)])
)
def test_cut_pads_with_zeros(rows, start, length, columns):
    values = np.random.default_rng(0).uniform(1, 2, (rows, *columns)).astype(np.float32)
    piece = cut(values, start, length)
    assert piece.shape == (length, *columns)
    count = max(0, min(length, rows - start))
    np.testing.assert_array_equal(piece[:count], values[start : start + count])
    assert not piece[count:].any()


def test_crossfade_uses_overhang_and_holds_last_value():
    long = np.arange(clip.PADDED_ENVELOPE, dtype=np.float32)
    np.testing.assert_array_equal(crossfade([long], 1, clip.ENVELOPE_RATE_HZ, 1_003, "linear"), long[:1_003])
    short = long[: clip.CLIP_ENVELOPE]
    joined = crossfade([short, short], 2, clip.ENVELOPE_RATE_HZ, 1_903, "linear")
    np.testing.assert_array_equal(joined[1_900:], short[-1])
