"""RMS envelopes: `measure` matches librosa, mu-law is monotonic, and invalid envelopes are rejected."""

import librosa
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foley import clip, envelope
from foley.errors import EnvelopeError

seeds = st.integers(0, 2**32 - 1)


def noise(seed: int, samples: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, samples).astype(np.float32)


@pytest.mark.parametrize(("frame_length", "hop"), [(1024, 160), (512, 128)])
@pytest.mark.parametrize("samples", [16_000, 12_345])
def test_measure_matches_librosa_with_reflection(frame_length, hop, samples):
    wave = noise(0, samples)
    whole = np.pad(wave, (0, -samples % hop))
    padded = np.pad(whole, (frame_length - hop) // 2, mode="reflect")
    expected = librosa.feature.rms(y=padded, frame_length=frame_length, hop_length=hop, center=False)[0]
    np.testing.assert_allclose(envelope.measure(wave, frame_length, hop), expected, rtol=1e-6)


@given(samples=st.integers(1, 5_000), seed=seeds)
@settings(deadline=None, max_examples=50)
def test_measure_has_one_frame_per_started_hop(samples, seed):
    measured = envelope.measure(noise(seed, samples))
    assert measured.dtype == np.float32
    assert len(measured) == -(-samples // clip.HOP) == envelope.frames(samples / clip.SAMPLE_RATE_HZ)
    assert np.isfinite(measured).all()
    assert (measured >= 0).all()


@given(gain=st.just(0.0) | st.floats(1e-3, 100) | st.floats(-100, -1e-3), seed=seeds)
@settings(deadline=None, max_examples=50)
def test_measure_scales_with_the_sound(gain, seed):
    wave = noise(seed, 2_000)
    np.testing.assert_allclose(envelope.measure(np.float32(gain) * wave), abs(gain) * envelope.measure(wave), rtol=1e-5)


# squares of smaller levels underflow float32; 2**-20 is below the smallest step of 16-bit audio
@given(level=st.just(0.0) | st.floats(2**-20, 1, width=32))
@settings(deadline=None, max_examples=20)
def test_measure_of_constant_is_exact_up_to_the_edges(level):
    np.testing.assert_allclose(envelope.measure(np.full(3_200, level, np.float32)), level, rtol=1e-5)


def test_measure_rejects_empty_sound():
    with pytest.raises(EnvelopeError, match="samples"):
        envelope.measure(np.empty(0, np.float32))


@given(duration_s=st.floats(0.001, 1_000))
@settings(deadline=None)
def test_frames_cover_the_samples_exactly(duration_s):
    samples, frames = envelope.samples(duration_s), envelope.frames(duration_s)
    assert abs(samples - duration_s * clip.SAMPLE_RATE_HZ) <= 0.5
    assert (frames - 1) * clip.HOP < max(samples, 1) <= frames * clip.HOP


@given(values=st.lists(st.floats(0, 1), min_size=2, max_size=20))
def test_mu_law_is_monotonic_and_within_range(values):
    law = envelope.mu_law(values)
    assert (np.diff(envelope.mu_law(np.sort(values))) >= 0).all()
    assert law.min() >= 0
    assert law.max() <= 1


@pytest.mark.parametrize("classes", [2, 16, 64])
def test_class_levels_rise_from_silence_to_full_scale(classes):
    levels = envelope.class_levels(classes)
    assert levels.shape == (classes,)
    assert levels[0] == 0
    assert levels[-1] == pytest.approx(1)
    assert (np.diff(levels) > 0).all()
    np.testing.assert_array_equal(levels[1:], envelope.mu_law_bins(classes)[1:])
    assert envelope.mu_law_bins(classes)[0] == pytest.approx(envelope.QUIETEST)
    # equal steps in mu-law: finest at low levels
    steps = np.diff(envelope.mu_law(envelope.mu_law_bins(classes)))
    np.testing.assert_allclose(steps, steps[0], rtol=1e-4)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "list"),
        (0.5, "list"),
        ([[0.1, 0.2]], "list"),
        ([[0.1], [0.2, 0.3]], "list"),
        (["loud"], "list"),
        ([None, {}], "list"),
        ([10**400], "list"),
        ([0.1, float("nan")], "frame 1"),
        ([0.1, 0.1, float("inf")], "frame 2"),
        ([1e300], "frame 0"),
        ([-0.5, 0.1], "frame 0"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_rejects_invalid_envelope(values, message):
    with pytest.raises(EnvelopeError, match=message):
        envelope.validate(values)


def test_rejects_wrong_length_with_both_lengths():
    with pytest.raises(EnvelopeError, match=r"3.*4"):
        envelope.validate([0.1, 0.2, 0.3], expected_frames=4)


@given(values=st.lists(st.floats(0, 2, width=32), min_size=1, max_size=50))
def test_valid_envelope_is_unchanged(values):
    valid = envelope.validate(values, expected_frames=len(values))
    assert valid.dtype == np.float32
    np.testing.assert_array_equal(valid, np.array(values, np.float32))
