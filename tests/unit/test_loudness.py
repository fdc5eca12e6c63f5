"""How loud the finished sound is: on the envelope's level, on its curve, or at the official peak."""

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


def wave_curve(quietest: float, loudest: float) -> np.ndarray:
    """Swells up and down once a second."""
    swell = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(FRAMES) / clip.ENVELOPE_RATE_HZ)
    return (quietest + (loudest - quietest) * swell).astype(np.float32)


@given(produced=st.floats(0.001, 1), loudest=st.floats(0, 0.15))
@settings(deadline=None, max_examples=25)
def test_level_gives_the_sound_the_envelopes_rms_and_leaves_its_dynamics(produced, loudest):
    wave, envelope = noise(produced), wave_curve(0, loudest)
    result = loudness.apply(wave, envelope, "level")
    assert power_mean(measure(result)) == pytest.approx(power_mean(envelope), rel=1e-4)
    gain = np.linalg.norm(result) / np.linalg.norm(wave)
    np.testing.assert_allclose(result, gain * wave, atol=1e-6)


@given(rate_hz=st.integers(1, 6), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=20)
def test_level_holds_where_single_peaks_would_pass_full_scale(rate_hz, seed):
    """Hits far above the rest are limited; the level, and what lies between the hits, stay."""
    wave = noise(0.02, seed)
    wave[:: clip.SAMPLE_RATE_HZ // rate_hz] = 1.0
    envelope = np.full(FRAMES, 0.2, np.float32)
    result = loudness.apply(wave, envelope, "level")
    assert np.abs(result).max() <= 1 + 1e-6
    assert power_mean(measure(result)) == pytest.approx(0.2, rel=0.01)


def test_level_yields_to_full_scale():
    result = loudness.apply(noise(0.1), np.full(FRAMES, 0.9, np.float32), "level")
    assert 0.9 < np.abs(result).max() <= 1 + 1e-6
    assert power_mean(measure(result)) < 0.9


def test_follow_stays_on_the_curve_beside_a_peak():
    envelope = np.full(FRAMES, 0.15, np.float32)
    envelope[FRAMES // 2] = 1.0
    produced = measure(loudness.apply(noise(0.1), envelope, "follow"))
    assert produced[: FRAMES // 2 - 8] == pytest.approx(0.15, rel=0.1)


def test_follow_puts_the_sound_on_the_curve():
    envelope = wave_curve(0.01, 0.15)
    uneven = noise(0.3) * np.linspace(0.2, 1, SAMPLES, dtype=np.float32)
    produced = measure(loudness.apply(uneven, envelope, "follow"))
    # a frame's RMS is over 64 ms, so that the curve comes back a little smoothed
    assert np.linalg.norm(produced - envelope) < 0.03 * np.linalg.norm(envelope)
    assert np.corrcoef(produced, envelope)[0, 1] > 0.999


def test_follow_is_silent_where_the_curve_is():
    envelope = np.repeat(np.array([0.1, 0.0, 0.1], np.float32), FRAMES // 3)
    result = loudness.apply(noise(0.3), envelope, "follow")
    middle = result[SAMPLES // 3 + clip.HOP : 2 * SAMPLES // 3 - clip.HOP]
    assert not middle.any()


@given(level=st.floats(0.001, 10), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=20)
def test_peak_is_the_official_one_whatever_the_envelope(level, seed):
    result = loudness.apply(noise(level, seed), np.zeros(FRAMES, np.float32), "peak")
    assert np.abs(result).max() == pytest.approx(0.8, rel=1e-5)


@pytest.mark.parametrize("how", get_args(Loudness))
@given(
    level=st.floats(0, 100),
    loudest=st.floats(0, 10),
    samples=st.integers(1, 3_000),
)
@settings(deadline=None, max_examples=30)
def test_the_result_is_finite_and_within_full_scale(how, level, loudest, samples):
    wave = noise(level)[:samples]
    envelope = wave_curve(0, loudest)[: -(-samples // clip.HOP)]
    result = loudness.apply(wave, envelope, how)
    assert result.dtype == np.float32
    assert result.shape == wave.shape
    assert np.isfinite(result).all()
    assert np.abs(result).max() <= 1 + 1e-6


@pytest.mark.parametrize("how", get_args(Loudness))
@pytest.mark.filterwarnings("error")
def test_silence_stays_silent(how):
    result = loudness.apply(np.zeros(SAMPLES, np.float32), wave_curve(0.1, 0.5), how)
    np.testing.assert_array_equal(result, np.zeros(SAMPLES, np.float32))


@pytest.mark.parametrize("how", get_args(Loudness))
def test_what_nobody_hears_is_not_blown_up(how):
    hiss = noise(1e-7)
    result = loudness.apply(hiss, np.full(FRAMES, 0.2, np.float32), how)
    assert np.abs(result).max() < 0.01


@pytest.mark.parametrize("how", get_args(Loudness))
def test_the_sound_given_is_left_as_it_was(how):
    wave = noise(0.3)
    loudness.apply(wave, wave_curve(0, 0.2), how)
    np.testing.assert_array_equal(wave, noise(0.3))
