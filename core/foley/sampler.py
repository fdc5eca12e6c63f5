"""The diffusion loop: how a sound is sampled, and the steps that it takes.

It exists once: the client drives it with one `denoiser` call a step, and the served model
`generate` runs the same code inside the server. Same seed, same result.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from foley import clip
from foley.errors import SettingError
from foley.manifest import SamplingDefaults
from foley.options import ALL_SIGMAS, Sampler, SamplingOptions, TimestepSpacing
from foley.schedule import noise_levels
from foley.solvers import ddim, draws, multistep

Floats = npt.NDArray[np.float32]

LATENTS_SHAPE = (clip.LATENT_CHANNELS, clip.LATENT_FRAMES, clip.LATENT_BINS)
_DEFAULTS = SamplingDefaults()


@dataclass(frozen=True)
class Sampling:
    """How one sound is sampled: `foley.options.SamplingOptions` with every value chosen.

    Together with the inputs it makes a sound repeatable.

    Raises:
        SettingError: a value outside its range, or two that exclude each other.
    """

    sampler: Sampler = _DEFAULTS.sampler
    steps: int = _DEFAULTS.steps
    guidance: float = _DEFAULTS.guidance
    eta: float = 0.0
    seed: int = 0
    timestep_spacing: TimestepSpacing = "uniform"
    guidance_interval: tuple[float, float] = ALL_SIGMAS

    def __post_init__(self) -> None:
        SamplingOptions.model_validate(asdict(self))

    def encode(self, window: int) -> bytes:
        """The tensor `options` of the served model `generate`: JSON, in which floats keep their last bit.

        Args:
            window: see `sample`.
        """
        return json.dumps({**asdict(self), "window": window}).encode()

    @classmethod
    def decode(cls, content: bytes) -> tuple["Sampling", int]:
        """The sampling and the window of a tensor `options`. Raises SettingError."""
        try:
            values = json.loads(content)
        except ValueError as error:
            raise SettingError("options is not JSON") from error
        if not isinstance(values, dict):
            raise SettingError("options is not a JSON object")
        window = values.pop("window", 0)
        if not isinstance(window, int) or window < 0:
            raise SettingError(f"window is {window!r}: choose 0 or more")
        chosen = SamplingOptions.model_validate(values).model_dump(exclude_none=True, exclude={"profile"})
        return cls(**chosen), window


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
    noise = draws(np.random.default_rng([sampling.seed, window]), LATENTS_SHAPE)
    start = next(noise)
    levels = noise_levels()
    low, high = sampling.guidance_interval

    def predict(latents: Floats, timestep: int) -> Floats:
        guided = low <= levels[timestep] <= high
        return denoise(latents, Step(timestep, sampling.guidance if guided else 1.0))

    if sampling.sampler == "ddim":
        return ddim(predict, start, sampling.steps, sampling.eta, noise)
    return multistep(predict, start, sampling.steps, sampling.timestep_spacing)
