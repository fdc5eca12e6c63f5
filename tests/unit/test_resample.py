"""Resampling is flat, without images and delay, and as long as the sound: compared with exact tones and with SciPy."""

from math import gcd

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import firwin, resample_poly

from foley.audio import resampled
from harness.resampling import resample

RATE = 16_000


@pytest.mark.parametrize("new_rate", [22_050, 44_100, 48_000, 96_000, 192_000, 47_999])
@pytest.mark.parametrize("tone_hz", [20, 997, 5_000, 7_200, 7_600])
def test_tone_is_that_of_the_new_rate(new_rate: int, tone_hz: int) -> None:
    """An error of 1e-5 is -100 dB: it bounds ripple (1e-4 dB), images and delay together."""
    tone, expected = (np.sin(2 * np.pi * tone_hz * np.arange(rate) / rate) for rate in (RATE, new_rate))
    found = resample(tone.astype(np.float32)[None], RATE, new_rate)[0]
    inside = slice(new_rate // 10, -new_rate // 10)
    assert np.abs(found - expected)[inside].max() < 1e-5


@pytest.mark.parametrize("new_rate", [22_050, 44_100, 48_000, 96_000])
def test_noise_is_that_of_a_long_kaiser_filter(new_rate: int) -> None:
    """Also at both ends, where the sound is silent outside."""
    noise = np.random.default_rng(0).normal(0, 0.2, RATE + 123).astype(np.float32)
    up, down = new_rate // gcd(new_rate, RATE), RATE // gcd(new_rate, RATE)
    kernel = firwin(256 * up + 1, 1 / up, window=("kaiser", 12))
    expected = resample_poly(noise.astype(np.float64), up, down, window=kernel)
    found = resample(noise[None], RATE, new_rate)[0]
    assert np.abs(found - expected[: len(found)]).max() < 2e-6


@given(st.integers(1, 40_000), st.sampled_from([8_000, 11_025, 16_000, 16_001, 22_050, 44_100, 48_000]))
@settings(deadline=None, max_examples=30)
def test_length_is_exact(samples: int, new_rate: int) -> None:
    blocks = list(resampled(np.ones(samples, np.float32), RATE, new_rate))
    assert sum(map(len, blocks)) == round(samples * new_rate / RATE)
    assert all(0 < len(block) <= 2 * new_rate for block in blocks)


def test_channels_are_independent() -> None:
    sound = np.random.default_rng(1).normal(0, 0.1, (6, 5_000)).astype(np.float32)
    found = resample(sound, RATE, 48_000)
    assert found.shape == (6, 15_000)
    np.testing.assert_array_equal(found[4], resample(sound[4:5], RATE, 48_000)[0])
