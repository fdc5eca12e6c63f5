"""Diffusion solvers in NumPy with one denoiser call per step: DDIM and DPM-Solver++ 2M."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from foley.envelope import Floats
from foley.options import TimestepSpacing
from foley.schedule import Doubles, ddim_tables, sigma_schedule

PredictNoise = Callable[[Floats, int], Floats]
"""(latents, timestep in 0..999) -> predicted noise of the same shape."""


def draws(random: np.random.Generator, shape: tuple[int, ...]) -> Iterator[Floats]:
    """Yield standard normal float32 arrays of `shape` indefinitely."""
    while True:
        yield random.standard_normal(shape, np.float32)


def ddim(
    predict_noise: PredictNoise, latents: Floats, steps: int, eta: float = 0.0, noise: Iterable[Floats] = ()
) -> Iterator[Floats]:
    """Sample with DDIM (Song et al. 2021); eta = 1 and 200 steps are the official sampler.

    Args:
        predict_noise: The denoiser; returns the predicted noise.
        latents: Initial latents, standard normal noise.
        steps: Number of denoising steps, 1..1000.
        eta: Share of fresh noise per step, 0..1; 0 is deterministic.
        noise: Standard normal arrays of the shape of `latents`, one per step; unused if eta is 0.

    Yields:
        The latents after each step.
    """
    tables = ddim_tables(steps, eta)
    fresh = iter(noise)
    for i in reversed(range(len(tables.timesteps))):
        alpha, alpha_prev, sigma = tables.alphas[i], tables.alphas_prev[i], tables.sigmas[i]
        predicted = predict_noise(latents, int(tables.timesteps[i]))
        x0 = (latents - np.sqrt(1 - alpha) * predicted) / np.sqrt(alpha)
        latents = np.sqrt(alpha_prev) * x0 + np.sqrt(1 - alpha_prev - sigma**2) * predicted
        if sigma > 0:
            latents = latents + sigma * next(fresh)
        latents = latents.astype(np.float32)
        yield latents


def multistep(
    predict_noise: PredictNoise, latents: Floats, steps: int, spacing: TimestepSpacing = "uniform"
) -> Iterator[Floats]:
    """Sample with DPM-Solver++ 2M (Lu et al. 2022, algorithm 2).

    Steps are second order, except the first and the last one, which are first order.

    Args:
        predict_noise: The denoiser; returns the predicted noise.
        latents: Initial latents, standard normal noise.
        steps: Number of denoising steps, 1..1000.
        spacing: Spacing of the timesteps; see `foley.schedule.sigma_schedule`.

    Yields:
        The latents after each step.
    """
    chosen = sigma_schedule(steps, spacing)
    sigmas = chosen.sigmas
    alphas_t = 1 / np.sqrt(1 + sigmas**2)  # of the variance-preserving process: alpha_t^2 + sigma_t^2 = 1
    sigmas_t = sigmas * alphas_t
    with np.errstate(divide="ignore"):
        log_snr = -np.log(sigmas)  # infinite for the last sigma, 0: h = inf, exp(-h) = 0

    previous_x0: Doubles = np.zeros(latents.shape)  # x0 as predicted in the previous step
    for i, timestep in enumerate(chosen.timesteps):
        h = log_snr[i + 1] - log_snr[i]
        x0 = (latents - sigmas_t[i] * predict_noise(latents, int(timestep))) / alphas_t[i]
        direction = x0
        # A schedule of 1000 steps repeats one timestep; a step of length 0 has no slope for the second order.
        if 0 < i < steps - 1 and sigmas[i - 1] > sigmas[i] > sigmas[i + 1]:
            ratio = (log_snr[i] - log_snr[i - 1]) / h
            direction = x0 + (x0 - previous_x0) / (2 * ratio)
        previous_x0 = x0
        latents = (sigmas_t[i + 1] / sigmas_t[i]) * latents - alphas_t[i + 1] * np.expm1(-h) * direction
        latents = latents.astype(np.float32)
        yield latents
