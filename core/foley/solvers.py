"""The solvers of the diffusion loop, one denoiser call a step: DDIM, DPM-Solver++ 2M and UniPC, in numpy."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import numpy.typing as npt

from foley.schedule import Doubles, Spacing, ddim_tables, grid

Floats = npt.NDArray[np.float32]
Predict = Callable[[Floats, int], Floats]
"""(latents, timestep 0..999) -> predicted noise of the same shape."""


def draws(random: np.random.Generator, shape: tuple[int, ...]) -> Iterator[Floats]:
    """Standard normal float32 arrays of `shape`, one after the other, without end."""
    while True:
        yield random.standard_normal(shape, np.float32)


def ddim(
    predict: Predict, latents: Floats, steps: int, eta: float = 0.0, noise: Iterable[Floats] = ()
) -> Iterator[Floats]:
    """Denoising diffusion implicit models (Song et al. 2021); with eta = 1 and 200 steps, the official sampler.

    Args:
        predict: the denoiser.
        latents: standard normal noise to start from.
        steps: denoising steps, 1..1000.
        eta: share of fresh noise in every step, 0..1.
        noise: standard normal arrays like `latents`, of which every step takes one; none is taken with eta 0.

    Yields:
        The latents after every step.
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


def multistep(
    predict: Predict, latents: Floats, steps: int, spacing: Spacing = "uniform", correct: bool = False
) -> Iterator[Floats]:
    """DPM-Solver++ 2M (Lu et al. 2022, algorithm 2): second order from one call a step. The last step is first order.

    With `correct` it is UniPC of second order (Zhao et al. 2023, B2(h)): the same prediction, and what a call says
    about the level that was reached is first used to correct the latents there.
    """
    chosen = grid(steps, spacing)
    levels = chosen.levels
    alphas = 1 / np.sqrt(1 + levels**2)
    sigmas = levels * alphas
    with np.errstate(divide="ignore"):
        log_snr = -np.log(levels)  # infinite at the end: h = inf, exp(-h) = 0

    def advance(start: Floats, i: int, direction: Doubles) -> Floats:
        """From level i to the next, along `direction`, a mean of clean latents over the way."""
        h = log_snr[i + 1] - log_snr[i]
        moved: Doubles = (sigmas[i + 1] / sigmas[i]) * start - alphas[i + 1] * np.expm1(-h) * direction
        return moved.astype(np.float32)

    def has_slope(i: int) -> bool:
        """Whether the step from level i can look back: 1000 steps hold one timestep twice, and the end is at 0."""
        return 0 < i < steps - 1 and bool(levels[i - 1] > levels[i] > levels[i + 1])

    cleans: list[Doubles] = []  # clean latents as they were seen from the last two levels
    begun = latents  # where the last step began
    for i, timestep in enumerate(chosen.timesteps):
        clean = (latents - sigmas[i] * predict(latents, int(timestep))) / alphas[i]
        if correct and cleans and levels[i - 1] > levels[i]:
            latents = advance(begun, i - 1, _corrected(cleans, clean, log_snr, i, has_slope(i - 1)))
        direction = clean
        if has_slope(i):
            ratio = (log_snr[i] - log_snr[i - 1]) / (log_snr[i + 1] - log_snr[i])
            direction = clean + (clean - cleans[-1]) / (2 * ratio)
        cleans = [*cleans[-1:], clean]
        begun = latents
        latents = advance(latents, i, direction)
        yield latents


def _corrected(cleans: list[Doubles], reached: Doubles, log_snr: Doubles, i: int, second_order: bool) -> Doubles:
    """The direction of the step from level i - 1 to i, now that `reached`, the clean latents seen from i, are known.

    `cleans` end with those seen from i - 1. UniPC's corrector has the order of the step that it corrects.
    """
    last = cleans[-1]
    if not second_order:
        return last + (reached - last) / 2
    h = log_snr[i] - log_snr[i - 1]
    back = (log_snr[i - 2] - log_snr[i - 1]) / h  # where the level before lies, in steps: negative
    slope_back = (cleans[-2] - last) / back
    phi_1 = np.expm1(-h)
    phi_2 = phi_1 / -h - 1
    phi_3 = phi_2 / -h - 1 / 2
    weights = np.linalg.solve([[1.0, 1.0], [back, 1.0]], [phi_2 / phi_1, 2 * phi_3 / phi_1])
    direction: Doubles = last + weights[0] * slope_back + weights[1] * (reached - last)
    return direction
