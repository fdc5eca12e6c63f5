"""The solvers of the diffusion loop, one denoiser call a step: DDIM and DPM-Solver++ 2M, in numpy."""

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from foley.schedule import Doubles, Spacing, ddim_tables, grid

Floats = npt.NDArray[np.float32]
Predict = Callable[[Floats, int], Floats]
"""(latents, timestep 0..999) -> predicted noise of the same shape."""


def ddim(predict: Predict, latents: Floats, steps: int, eta: float, random: np.random.Generator) -> Iterator[Floats]:
    """Denoising diffusion implicit models; with eta = 1 and 200 steps, the official sampler."""
    tables = ddim_tables(steps, eta)
    for i in reversed(range(len(tables.timesteps))):
        alpha, alpha_prev, sigma = tables.alphas[i], tables.alphas_prev[i], tables.sigmas[i]
        noise = predict(latents, int(tables.timesteps[i]))
        clean = (latents - np.sqrt(1 - alpha) * noise) / np.sqrt(alpha)
        latents = np.sqrt(alpha_prev) * clean + np.sqrt(1 - alpha_prev - sigma**2) * noise
        if sigma > 0:
            latents = latents + sigma * random.standard_normal(latents.shape, np.float32)
        latents = latents.astype(np.float32)
        yield latents


def multistep(predict: Predict, latents: Floats, steps: int, spacing: Spacing = "uniform") -> Iterator[Floats]:
    """DPM-Solver++ 2M (Lu et al. 2022, algorithm 2): one call per step, second order; the last step is first order."""
    chosen = grid(steps, spacing)
    levels = chosen.levels
    alphas = 1 / np.sqrt(1 + levels**2)
    sigmas = levels * alphas
    with np.errstate(divide="ignore"):
        log_snr = -np.log(levels)  # infinite at the end: h = inf, exp(-h) = 0

    previous: Doubles = np.zeros(latents.shape)  # the clean latents predicted in the step before
    for i, timestep in enumerate(chosen.timesteps):
        h = log_snr[i + 1] - log_snr[i]
        clean = (latents - sigmas[i] * predict(latents, int(timestep))) / alphas[i]
        direction = clean
        # 1000 steps contain one timestep twice: a step of length 0 has no slope
        if 0 < i < steps - 1 and levels[i - 1] > levels[i] > levels[i + 1]:
            ratio = (log_snr[i] - log_snr[i - 1]) / h
            direction = clean + (clean - previous) / (2 * ratio)
        previous = clean
        latents = (sigmas[i + 1] / sigmas[i]) * latents - alphas[i + 1] * np.expm1(-h) * direction
        latents = latents.astype(np.float32)
        yield latents
