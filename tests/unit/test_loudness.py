"""Loudness of the output: matched to the level or the curve of the envelope, or normalised to the official peak."""

from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foley import clip, loudness
from foley.envelope import measure
from foley.options import Loudness

SAMPLES = 3 * clip.SAMPLE_RATE_HZ
FRAMES = SAMPLES // clip.HOP


def noise(level: float, seed: int = 0) -> np.ndarray:
    return (level * np.random.default_rng(seed).standard_normal(SAMPLES)).astype(np.float32)


def power_mean(envelope: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(envelope))))


def modulated_curve(quietest: float, loudest: float) -> np.ndarray:
    """An envelope that rises and falls once a second."""
    modulation = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(FRAMES) / clip.ENVELOPE_RATE_HZ)
    return (quietest + (loudest - quietest) * modulation).astype(np.float32)


@given(produced=st.floats(0.001, 1), loudest=st.floats(0, 0.15))
@settings(deadline=None, max_examples=25)
def test_level_matches_rms_and_preserves_dynamics(produced, loudest):
    wave, envelope = noise(produced), modulated_curve(0, loudest)
    result = loudness.apply(wave, envelope, "level")
    assert power_mean(measure(result)) == pytest.approx(power_mean(envelope), rel=1e-4)
    gain = np.linalg.norm(result) / np.linalg.norm(wave)
    np.testing.assert_allclose(result, gain * wave, atol=1e-6)


@given(rate_hz=st.integers(1, 6), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=20)
def test_level_limits_single_peaks(rate_hz, seed):
    """Impulses far above the rest are limited; the level, and the sound between the impulses, stay."""
    wave = noise(0.02, seed)
    wave[:: clip.SAMPLE_RATE_HZ // rate_hz] = 1.0
    envelope = np.full(FRAMES, 0.2, np.float32)
    result = loudness.apply(wave, envelope, "level")
    assert np.abs(result).max() <= 1 + 1e-6
    assert power_mean(measure(result)) == pytest.approx(0.2, rel=0.01)


def test_level_is_limited_to_full_scale():
    result = loudness.apply(noise(0.1), np.full(FRAMES, 0.9, np.float32), "level")
    assert 0.9 < np.abs(result).max() <= 1 + 1e-6
    assert power_mean(measure(result)) < 0.9


def test_follow_matches_curve_next_to_peak():
    envelope = np.full(FRAMES, 0.15, np.float32)
    envelope[FRAMES // 2] = 1.0
    produced = measure(loudness.apply(noise(0.1), envelope, "follow"))
    assert produced[: FRAMES // 2 - 8] == pytest.approx(0.15, rel=0.1)


def test_follow_matches_curve():
    envelope = modulated_curve(0.01, 0.15)
    uneven = noise(0.3) * np.linspace(0.2, 1, SAMPLES, dtype=np.float32)
    produced = measure(loudness.apply(uneven, envelope, "follow"))
    # a frame's RMS spans 64 ms and therefore smooths the curve
    assert np.linalg.norm(produced - envelope) < 0.03 * np.linalg.norm(envelope)
    assert np.corrcoef(produced, envelope)[0, 1] > 0.999


def test_follow_is_silent_where_curve_is_zero():
    envelope = np.repeat(np.array([0.1, 0.0, 0.1], np.float32), FRAMES // 3)
    result = loudness.apply(noise(0.3), envelope, "follow")
    middle = result[SAMPLES // 3 + clip.HOP : 2 * SAMPLES // 3 - clip.HOP]
    assert not middle.any()


@given(level=st.floats(0.001, 10), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=20)
def test_peak_is_official_value_for_any_envelope(level, seed):
    result = loudness.apply(noise(level, seed), np.zeros(FRAMES, np.float32), "peak")
    assert np.abs(result).max() == pytest.approx(0.8, rel=1e-5)


@pytest.mark.parametrize("mode", get_args(Loudness))
@given(
    level=st.floats(0, 100),
    loudest=st.floats(0, 10),
    samples=st.integers(1, 3_000),
)
@settings(deadline=None, max_examples=30)
def test_result_is_finite_and_within_full_scale(mode, level, loudest, samples):
    wave = noise(level)[:samples]
    envelope = modulated_curve(0, loudest)[: -(-samples // clip.HOP)]
    result = loudness.apply(wave, envelope, mode)
    assert result.dtype == np.float32
    assert result.shape == wave.shape
    assert np.isfinite(result).all()
    assert np.abs(result).max() <= 1 + 1e-6


@pytest.mark.parametrize("mode", get_args(Loudness))
@pytest.mark.filterwarnings("error")
def test_silence_stays_silent(mode):
    result = loudness.apply(np.zeros(SAMPLES, np.float32), modulated_curve(0.1, 0.5), mode)
    np.testing.assert_array_equal(result, np.zeros(SAMPLES, np.float32))


@pytest.mark.parametrize("mode", get_args(Loudness))
def test_inaudible_noise_is_not_amplified(mode):
    hiss = noise(1e-7)
    result = loudness.apply(hiss, np.full(FRAMES, 0.2, np.float32), mode)
    assert np.abs(result).max() < 0.01


@pytest.mark.parametrize("mode", get_args(Loudness))
def test_input_is_not_modified(mode):
    wave = noise(0.3)
    loudness.apply(wave, modulated_curve(0, 0.2), mode)
    np.testing.assert_array_equal(wave, noise(0.3))
