"""AudioLDM's noise schedule, and which of its levels a loop of few steps visits."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from foley.options import TimestepSpacing

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

TRAIN_STEPS = 1000

_KARRAS_RHO = 7.0


def betas() -> Doubles:
    """AudioLDM's noise schedule: linear between the square roots of 0.0015 and 0.0195, [1000]."""
    roots: Doubles = np.linspace(0.0015**0.5, 0.0195**0.5, TRAIN_STEPS)
    return roots * roots


def alphas_cumprod() -> Floats:
    """Share of the signal's power that is left at every training step, [1000]; float32, as checkpoints hold it."""
    cumprod: Floats = np.cumprod(1.0 - betas()).astype(np.float32)
    return cumprod


def noise_levels() -> Doubles:
    """Noise over signal, sigma, at every training step, [1000]: rises from 0.04 to 14."""
    cumprod = alphas_cumprod().astype(np.float64)
    levels: Doubles = np.sqrt((1 - cumprod) / cumprod)
    return levels


@dataclass(frozen=True)
class Grid:
    """The levels that a loop visits, from noise to sound.

    `timesteps` int64 [steps] is what the denoiser is told; `levels` float64 [steps + 1] are the sigmas that the
    solver computes with, the last one 0.
    """

    timesteps: npt.NDArray[np.int64]
    levels: Doubles


def grid(steps: int, spacing: TimestepSpacing) -> Grid:
    """The levels of a loop of `steps` steps.

    "uniform" spaces the timesteps equally from 999 down; "karras" the sigmas to the power of 1/7 (Karras et al. 2022,
    equation 5); "log-snr" the logarithms of the sigmas (Lu et al. 2022). The last two fall between training steps: the
    denoiser is told the nearest one in log sigma, as in diffusers.
    """
    trained = noise_levels()
    if spacing == "uniform":
        timesteps = np.linspace(TRAIN_STEPS - 1, 0, steps + 1).round()[:-1].astype(np.int64)
        return Grid(timesteps, np.append(trained[timesteps], 0.0))
    if spacing == "karras":
        roots = np.linspace(trained[-1] ** (1 / _KARRAS_RHO), trained[0] ** (1 / _KARRAS_RHO), steps)
        levels = roots**_KARRAS_RHO
    else:
        levels = np.exp(np.linspace(np.log(trained[-1]), np.log(trained[0]), steps))
    timesteps = np.interp(np.log(levels), np.log(trained), np.arange(TRAIN_STEPS)).round().astype(np.int64)
    return Grid(timesteps, np.append(levels, 0.0))


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
    alphas_prev: Doubles
    sigmas: Doubles


def ddim_tables(steps: int, eta: float) -> DDIMTables:
    """The tables of the official DDIM sampler (Song et al. 2021, equation 16), to the last bit."""
    cumprod = alphas_cumprod()
    timesteps = ddim_timesteps(steps)
    alphas = cumprod[timesteps]
    alphas_prev = np.concatenate([cumprod[:1], alphas[:-1]]).astype(np.float64)
    # `alphas` is a torch tensor there: to divide by one is to multiply by its float32 reciprocal
    sigmas = eta * np.sqrt((1 - alphas_prev) * (1 / (1 - alphas)) * (1 - alphas / alphas_prev))
    return DDIMTables(timesteps, alphas, alphas_prev, sigmas)
