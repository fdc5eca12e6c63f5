"""The diffusion loop: noise schedule, DDIM and DPM-Solver++ 2M, in numpy.

It exists once: the client drives it with one `denoiser` call a step, and the served model
`generate` runs the same code inside the server. Same seed, same result.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from foley import clip
from foley.errors import SettingError

Floats = npt.NDArray[np.float32]
Denoise = Callable[[Floats, int], Floats]
"""(latents [8, 256, 16], timestep 0..999) -> predicted noise of the same shape."""

SamplerName = Literal["ddim", "dpm++"]
SAMPLERS: tuple[SamplerName, ...] = ("ddim", "dpm++")

TRAIN_STEPS = 1000
LATENTS_SHAPE = (clip.LATENT_CHANNELS, clip.LATENT_FRAMES, clip.LATENT_BINS)


def betas() -> npt.NDArray[np.float64]:
    """AudioLDM's noise schedule: linear between the square roots of 0.0015 and 0.0195, [1000]."""
    roots: npt.NDArray[np.float64] = np.linspace(0.0015**0.5, 0.0195**0.5, TRAIN_STEPS)
    return roots * roots


def alphas_cumprod() -> Floats:
    """Share of the signal's power that is left at every training step, [1000]; float32, as checkpoints hold it."""
    cumprod: Floats = np.cumprod(1.0 - betas()).astype(np.float32)
    return cumprod


@dataclass(frozen=True)
class Sampling:
    """How a sound is sampled; everything that, with the inputs, makes it repeatable.

    Attributes:
        sampler: "ddim" (the official one) or "dpm++" (DPM-Solver++ 2M: made for few steps).
        steps: denoising steps, 1..1000.
        guidance: scale of classifier-free guidance, >= 1; exactly 1 halves the cost.
        eta: share of fresh noise in every DDIM step, 0..1 (the official pipeline: 1).
        seed: 0..2**63-1.
    """

    sampler: SamplerName = "dpm++"
    steps: int = 25
    guidance: float = 3.5
    eta: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise SettingError(f"unknown sampler {self.sampler!r}: choose {' or '.join(SAMPLERS)}")
        if not 1 <= self.steps <= TRAIN_STEPS:
            raise SettingError(f"steps is {self.steps}: choose 1 to {TRAIN_STEPS}")
        if not 1.0 <= self.guidance <= 100.0:
            raise SettingError(f"guidance is {self.guidance}: choose 1 (none) to 100")
        if not 0.0 <= self.eta <= 1.0:
            raise SettingError(f"eta is {self.eta}: choose 0 to 1")
        if self.eta and self.sampler != "ddim":
            raise SettingError("eta belongs to the ddim sampler; leave it out with dpm++")
        if not 0 <= self.seed < 2**63:
            raise SettingError(f"seed is {self.seed}: choose 0 to 2**63 - 1")


def sample(denoise: Denoise, sampling: Sampling, window: int = 0) -> Iterator[Floats]:
    """Run the loop from seeded noise; yield the latents after every step, the last are the result.

    `window` tells the windows of a long sound apart: each has noise of its own. Nothing is computed
    ahead, so a caller that stops iterating has stopped the work.
    """
    random = np.random.default_rng([sampling.seed, window])
    start = random.standard_normal(LATENTS_SHAPE, np.float32)
    if sampling.sampler == "ddim":
        return ddim(denoise, start, sampling.steps, sampling.eta, random)
    return dpm_solver(denoise, start, sampling.steps)


def ddim_timesteps(steps: int) -> npt.NDArray[np.int64]:
    """The official "uniform" choice of timesteps, ascending: 1, 6, ..., 996 for 200 steps."""
    # the official code supports divisors of 1000 only in effect; others are spread evenly here
    spread = np.arange(steps, dtype=np.int64) * TRAIN_STEPS // steps
    return np.minimum(spread + 1, TRAIN_STEPS - 1)


@dataclass(frozen=True)
class DDIMTables:
    """Coefficients of every DDIM step, in ascending order of the timesteps, [steps] each."""

    timesteps: npt.NDArray[np.int64]
    alphas: Floats
    alphas_prev: npt.NDArray[np.float64]
    sigmas: npt.NDArray[np.float64]


def ddim_tables(steps: int, eta: float) -> DDIMTables:
    """The tables of the official DDIM sampler (Song et al. 2021, equation 16), to the last bit."""
    cumprod = alphas_cumprod()
    timesteps = ddim_timesteps(steps)
    alphas = cumprod[timesteps]
    alphas_prev = np.concatenate([cumprod[:1], alphas[:-1]]).astype(np.float64)
    # `alphas` is a torch tensor there: to divide by one is to multiply by its float32 reciprocal
    sigmas = eta * np.sqrt((1 - alphas_prev) * (1 / (1 - alphas)) * (1 - alphas / alphas_prev))
    return DDIMTables(timesteps, alphas, alphas_prev, sigmas)


def ddim(denoise: Denoise, latents: Floats, steps: int, eta: float, random: np.random.Generator) -> Iterator[Floats]:
    """Denoising diffusion implicit models; with eta = 1 and 200 steps, the official sampler."""
    tables = ddim_tables(steps, eta)
    for i in reversed(range(len(tables.timesteps))):
        alpha, alpha_prev, sigma = tables.alphas[i], tables.alphas_prev[i], tables.sigmas[i]
        noise = denoise(latents, int(tables.timesteps[i]))
        clean = (latents - np.sqrt(1 - alpha) * noise) / np.sqrt(alpha)
        latents = np.sqrt(alpha_prev) * clean + np.sqrt(1 - alpha_prev - sigma**2) * noise
        if sigma > 0:
            latents = latents + sigma * random.standard_normal(latents.shape, np.float32)
        latents = latents.astype(np.float32)
        yield latents


def dpm_solver(denoise: Denoise, latents: Floats, steps: int) -> Iterator[Floats]:
    """DPM-Solver++ 2M (Lu et al. 2022, algorithm 2): second order from one denoiser call a step.

    Timesteps are equally spaced from 999 down; the last step goes to noise zero and is first order.
    """
    cumprod = alphas_cumprod().astype(np.float64)
    timesteps = np.linspace(TRAIN_STEPS - 1, 0, steps + 1).round()[:-1].astype(np.int64)
    alphas = np.append(np.sqrt(cumprod[timesteps]), 1.0)
    sigmas = np.append(np.sqrt(1 - cumprod[timesteps]), 0.0)
    with np.errstate(divide="ignore"):
        log_snr = np.log(alphas) - np.log(sigmas)  # infinite at the end: h = inf, exp(-h) = 0

    previous: Floats | None = None
    for i, timestep in enumerate(timesteps):
        noise = denoise(latents, int(timestep))
        clean = (latents - sigmas[i] * noise) / alphas[i]
        h = log_snr[i + 1] - log_snr[i]
        direction = clean
        # 1000 steps hold one timestep twice: between the two, and after them, there is no slope
        if previous is not None and i < len(timesteps) - 1 and timesteps[i - 1] > timestep > timesteps[i + 1]:
            ratio = (log_snr[i] - log_snr[i - 1]) / h
            direction = clean + (clean - previous) / (2 * ratio)
        latents = (sigmas[i + 1] / sigmas[i]) * latents - alphas[i + 1] * np.expm1(-h) * direction
        latents = latents.astype(np.float32)
        previous = clean
        yield latents
