"""The diffusion loop: how a sound is sampled, and the steps that it takes.

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
from foley.schedule import SPACINGS, TRAIN_STEPS, Spacing, noise_levels
from foley.solvers import ddim, multistep

Floats = npt.NDArray[np.float32]

SamplerName = Literal["ddim", "dpm++"]
SAMPLERS: tuple[SamplerName, ...] = ("ddim", "dpm++")

LATENTS_SHAPE = (clip.LATENT_CHANNELS, clip.LATENT_FRAMES, clip.LATENT_BINS)
EVERYWHERE = (0.0, 100.0)  # an interval that holds all noise levels


@dataclass(frozen=True)
class Sampling:
    """How a sound is sampled; everything that, with the inputs, makes it repeatable.

    Attributes:
        sampler: "ddim" (the official one) or "dpm++" (DPM-Solver++ 2M, made for few steps).
        steps: denoising steps, 1..1000.
        guidance: scale of classifier-free guidance, >= 1; exactly 1 halves the cost.
        eta: share of fresh noise in every DDIM step, 0..1 (the official pipeline: 1).
        seed: 0..2**63-1.
        spacing: which noise levels are visited, see `foley.schedule.grid`; ddim has its own.
        guidance_interval: lowest and highest noise level, sigma, at which there is guidance (Kynkäänniemi et al. 2024);
            sigma falls from 14 to 0.04 over the loop. Steps outside cost half.
    """

    sampler: SamplerName = "dpm++"
    steps: int = 25
    guidance: float = 3.5
    eta: float = 0.0
    seed: int = 0
    spacing: Spacing = "uniform"
    guidance_interval: tuple[float, float] = EVERYWHERE

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise SettingError(f"unknown sampler {self.sampler!r}: choose {', '.join(SAMPLERS)}")
        if not 1 <= self.steps <= TRAIN_STEPS:
            raise SettingError(f"steps is {self.steps}: choose 1 to {TRAIN_STEPS}")
        if not 1.0 <= self.guidance <= 100.0:
            raise SettingError(f"guidance is {self.guidance}: choose 1 (none) to 100")
        if not 0.0 <= self.eta <= 1.0:
            raise SettingError(f"eta is {self.eta}: choose 0 to 1")
        if self.eta and self.sampler != "ddim":
            raise SettingError(f"eta belongs to the ddim sampler; leave it out with {self.sampler}")
        if not 0 <= self.seed < 2**63:
            raise SettingError(f"seed is {self.seed}: choose 0 to 2**63 - 1")
        if self.spacing not in SPACINGS:
            raise SettingError(f"unknown spacing {self.spacing!r}: choose {', '.join(SPACINGS)}")
        if self.spacing != "uniform" and self.sampler == "ddim":
            raise SettingError("spacing belongs to the dpm++ sampler; leave it out with ddim")
        low, high = self.guidance_interval
        if not 0.0 <= low <= high <= EVERYWHERE[1]:
            raise SettingError(
                f"guidance_interval is {low} to {high}: choose noise levels from 0 to 100, the lower one first"
            )


@dataclass(frozen=True)
class Step:
    """What one call of the denoiser is asked for."""

    timestep: int  # 0..999
    guidance: float  # 1: none


Denoise = Callable[[Floats, Step], Floats]
"""(latents [8, 256, 16], step) -> predicted noise of the same shape."""


def sample(denoise: Denoise, sampling: Sampling, window: int = 0) -> Iterator[Floats]:
    """Run the loop from seeded noise; yield the latents after every step, the last are the result.

    `window` tells the windows of a long sound apart: each has noise of its own. Nothing is computed
    ahead, so a caller that stops iterating has stopped the work.
    """
    random = np.random.default_rng([sampling.seed, window])
    start = random.standard_normal(LATENTS_SHAPE, np.float32)
    levels = noise_levels()
    low, high = sampling.guidance_interval

    def predict(latents: Floats, timestep: int) -> Floats:
        guided = low <= levels[timestep] <= high
        return denoise(latents, Step(timestep, sampling.guidance if guided else 1.0))

    if sampling.sampler == "ddim":
        return ddim(predict, start, sampling.steps, sampling.eta, random)
    return multistep(predict, start, sampling.steps, sampling.spacing)
