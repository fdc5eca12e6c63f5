"""The diffusion loop and its settings.

There is one implementation: the client runs it with one call of `denoiser` per step, and the served model `generate`
runs the same code on the server. The same seed gives the same result.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import numpy as np

from foley import clip
from foley.envelope import Floats
from foley.errors import SettingError
from foley.manifest import SamplingDefaults
from foley.options import ALL_SIGMAS, RANDOM_SEED, Sampler, SamplingOptions, TimestepSpacing
from foley.schedule import training_sigmas
from foley.solvers import ddim, draws, multistep

LATENTS_SHAPE = (clip.LATENT_CHANNELS, clip.LATENT_FRAMES, clip.LATENT_BINS)
_DEFAULTS = SamplingDefaults()


@dataclass(frozen=True)
class Sampling:
    """Resolved sampling settings of one sound: `foley.options.SamplingOptions` with every value set.

    Together with the inputs, they make a sound reproducible.

    Raises:
        SettingError: A value is out of range, or two values conflict.
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
        if self.seed == RANDOM_SEED:
            raise SettingError("seed is -1: draw a seed from 0 to 2^64 - 1")

    def encode(self, window: int) -> bytes:
        """Return the tensor `options` of the served model `generate`: JSON, which preserves floats exactly.

        Args:
            window: Index of the window; see `sample`.
        """
        return json.dumps({**asdict(self), "window": window}).encode()

    @classmethod
    def decode(cls, content: bytes) -> tuple["Sampling", int]:
        """Parse a tensor `options` into the sampling and the index of the window.

        Raises:
            SettingError: The content is malformed, or a value is out of range.
        """
        try:
            values = json.loads(content)
        except ValueError as error:
            raise SettingError("the tensor options is not valid JSON; encode it with foley.sampler.Sampling") from error
        if not isinstance(values, dict):
            raise SettingError("the tensor options is not a JSON object; encode it with foley.sampler.Sampling")
        window = values.pop("window", 0)
        if not isinstance(window, int) or window < 0:
            raise SettingError(f"window is {window!r}: use an integer from 0")
        chosen = SamplingOptions.model_validate(values).model_dump(exclude_none=True, exclude={"profile"})
        return cls(**chosen), window


@dataclass(frozen=True)
class Step:
    """Scalar inputs of one denoiser call.

    Attributes:
        timestep: Training timestep, 0..999.
        guidance: Scale of classifier-free guidance; 1: none.
    """

    timestep: int
    guidance: float


Denoise = Callable[[Floats, Step], Floats]
"""(latents float32 [8, 256, 16], step) -> predicted noise of the same shape."""


def sample(denoise: Denoise, sampling: Sampling, window: int = 0) -> Iterator[Floats]:
    """Run the diffusion loop from seeded noise.

    Steps are computed lazily: a caller that stops iterating stops the computation.

    Args:
        denoise: Calls the denoiser.
        sampling: Settings.
        window: Index of the window of a long sound, 0 or more; each window has different noise.

    Yields:
        The latents after each step, float32 [8, 256, 16]; the last ones are the result.
    """
    noise = draws(_generator(sampling.seed, window), LATENTS_SHAPE)
    start = next(noise)
    sigmas = training_sigmas()
    low, high = sampling.guidance_interval

    def predict(latents: Floats, timestep: int) -> Floats:
        guided = low <= sigmas[timestep] <= high
        return denoise(latents, Step(timestep, sampling.guidance if guided else 1.0))

    if sampling.sampler == "ddim":
        return ddim(predict, start, sampling.steps, sampling.eta, noise)
    return multistep(predict, start, sampling.steps, sampling.timestep_spacing)


def _generator(seed: int, window: int) -> np.random.Generator:
    """Return the generator of a window's noise; no two seeds or windows share one.

    NumPy splits each number into words of 32 bits: [5 + 2**32, 0] would be the words of [5, 1]. The high word of a
    seed therefore comes last, and only where there is one, so that smaller seeds keep their noise.
    """
    low, high = seed & 0xFFFFFFFF, seed >> 32
    return np.random.default_rng([low, window, high] if high else [low, window])
