"""The tables and measures that need no network, against the official implementation.

The trajectory of the sampler with the denoiser in it is in `test_sound_networks.py`.
"""

import numpy as np
import pytest

from foley import clip, envelope, sampler

ROUNDING = 2e-7  # relative, of a float32 in the official tables


def test_the_noise_schedule(vector):
    tables = vector("ddim_tables")
    np.testing.assert_allclose(sampler.betas(), tables["betas"], rtol=ROUNDING)
    np.testing.assert_allclose(sampler.alphas_cumprod(), tables["alphas_cumprod"], rtol=ROUNDING)


@pytest.mark.parametrize("eta", [0, 1])
@pytest.mark.parametrize("steps", [4, 25, 200])
def test_ddim_tables(vector, steps, eta):
    official = vector("ddim_tables")
    ours = sampler.ddim_tables(steps, eta)
    suffix = f"{steps}_eta{eta}"
    np.testing.assert_array_equal(ours.timesteps, official[f"ddim_timesteps_{suffix}"])
    np.testing.assert_allclose(ours.alphas, official[f"ddim_alphas_{suffix}"], rtol=ROUNDING)
    np.testing.assert_allclose(ours.alphas_prev, official[f"ddim_alphas_prev_{suffix}"], rtol=ROUNDING)
    # the official sigmas are differences of float32 numbers close to 1
    np.testing.assert_allclose(ours.sigmas, official[f"ddim_sigmas_{suffix}"], rtol=1e-5, atol=1e-12)


def test_the_rms_that_video2rms_was_trained_on(vector):
    arrays = vector("rms")
    ours = envelope.measure(arrays["waveform"], 512, 128)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, arrays["rms_512_128"], rtol=1e-6)


def test_the_rms_that_rms2sound_was_trained_on(vector):
    arrays = vector("rms")
    padded = np.pad(arrays["waveform"], (0, clip.PADDED_SAMPLES - len(arrays["waveform"])))
    np.testing.assert_allclose(envelope.measure(padded), arrays["rms_1024_160"], rtol=1e-6)


def test_mu_law_bins_and_the_levels_of_classes(vector):
    arrays = vector("rms")
    np.testing.assert_allclose(envelope.mu_law(arrays["rms_512_128"]), arrays["mu_law_63"], atol=1e-6)
    np.testing.assert_allclose(envelope.mu_law_bins(), arrays["mu_bins"], atol=1e-6)
    np.testing.assert_allclose(envelope.class_levels()[arrays["classes"]], arrays["rms_from_classes"], atol=1e-6)
