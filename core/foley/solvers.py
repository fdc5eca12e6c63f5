"""Diffusion solvers in NumPy with one denoiser call per step: DDIM and DPM-Solver++ 2M."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import numpy.typing as npt

from foley.options import TimestepSpacing
from foley.schedule import Doubles, ddim_tables, grid

Floats = npt.NDArray[np.float32]
Predict = Callable[[Floats, int], Floats]
"""(latents, timestep in 0..999) -> predicted noise of the same shape."""


def draws(random: np.random.Generator, shape: tuple[int, ...]) -> Iterator[Floats]:
    """Yield standard normal float32 arrays of `shape` indefinitely."""
    while True:
        yield random.standard_normal(shape, np.float32)


def ddim(
    predict: Predict, latents: Floats, steps: int, eta: float = 0.0, noise: Iterable[Floats] = ()
) -> Iterator[Floats]:
    """Sample with DDIM (Song et al. 2021); eta = 1 and 200 steps are the official sampler.

    Args:
        predict: The denoiser; returns the predicted noise.
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
        predicted = predict(latents, int(tables.timesteps[i]))
        clean = (latents - np.sqrt(1 - alpha) * predicted) / np.sqrt(alpha)
        latents = np.sqrt(alpha_prev) * clean + np.sqrt(1 - alpha_prev - sigma**2) * predicted
        if sigma > 0:
            latents = latents + sigma * next(fresh)
        latents = latents.astype(np.float32)
        yield latents


def multistep(predict: Predict, latents: Floats, steps: int, spacing: TimestepSpacing = "uniform") -> Iterator[Floats]:
    """Sample with DPM-Solver++ 2M (Lu et al. 2022, algorithm 2).

    Steps are second order, except the first and the last one, which are first order.

    Args:
        predict: The denoiser; returns the predicted noise.
        latents: Initial latents, standard normal noise.
        steps: Number of denoising steps, 1..1000.
        spacing: Spacing of the timesteps; see `foley.schedule.grid`.

    Yields:
        The latents after each step.
    """
    chosen = grid(steps, spacing)
    levels = chosen.levels
    alphas = 1 / np.sqrt(1 + levels**2)
    sigmas = levels * alphas
    with np.errstate(divide="ignore"):
        log_snr = -np.log(levels)  # infinite for the last sigma, 0: h = inf, exp(-h) = 0

    previous: Doubles = np.zeros(latents.shape)  # x0 as predicted in the previous step
    for i, timestep in enumerate(chosen.timesteps):
        h = log_snr[i + 1] - log_snr[i]
        clean = (latents - sigmas[i] * predict(latents, int(timestep))) / alphas[i]
        direction = clean
        # A schedule of 1000 steps repeats one timestep; a step of length 0 has no slope for the second order.
        if 0 < i < steps - 1 and levels[i - 1] > levels[i] > levels[i + 1]:
            ratio = (log_snr[i] - log_snr[i - 1]) / h
            direction = clean + (clean - previous) / (2 * ratio)
        previous = clean
        latents = (sigmas[i + 1] / sigmas[i]) * latents - alphas[i + 1] * np.expm1(-h) * direction
        latents = latents.astype(np.float32)
        yield latents
