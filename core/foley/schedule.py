"""AudioLDM's noise schedule, and the timesteps and sigmas that a sampler visits."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from foley.envelope import Floats
from foley.options import TimestepSpacing

Doubles = npt.NDArray[np.float64]

TRAIN_STEPS = 1000

_KARRAS_RHO = 7.0


def betas() -> Doubles:
    """Return AudioLDM's betas, [1000]: their square roots are linear from sqrt(0.0015) to sqrt(0.0195)."""
    roots: Doubles = np.linspace(0.0015**0.5, 0.0195**0.5, TRAIN_STEPS)
    return roots * roots


def alphas_cumprod() -> Floats:
    """Return the cumulative product of 1 - beta at each training step, [1000]; float32, as in checkpoints."""
    cumprod: Floats = np.cumprod(1.0 - betas()).astype(np.float32)
    return cumprod


def training_sigmas() -> Doubles:
    """Return sigma, the noise-to-signal ratio, at each training step, [1000]; it rises from 0.04 to 14."""
    cumprod = alphas_cumprod().astype(np.float64)
    sigmas: Doubles = np.sqrt((1 - cumprod) / cumprod)
    return sigmas


@dataclass(frozen=True)
class SigmaSchedule:
    """A sigma schedule, from noise to sound.

    Attributes:
        timesteps: Inputs of the denoiser, int64 [steps], descending.
        sigmas: Sigmas of the solver, float64 [steps + 1], descending; the last one is 0.
    """

    timesteps: npt.NDArray[np.int64]
    sigmas: Doubles


def sigma_schedule(steps: int, spacing: TimestepSpacing) -> SigmaSchedule:
    """Return the sigma schedule for `steps` steps.

    With "karras" and "log-snr", sigmas fall between training steps; the denoiser gets the timestep that is nearest in
    log sigma, as in diffusers.

    Args:
        steps: Number of denoising steps.
        spacing: What is spaced equally. "uniform": timesteps, from 999 down. "karras": sigma^(1/7) (Karras et al. 2022,
            equation 5). "log-snr": log sigma (Lu et al. 2022).
    """
    trained = training_sigmas()
    if spacing == "uniform":
        timesteps = np.linspace(TRAIN_STEPS - 1, 0, steps + 1).round()[:-1].astype(np.int64)
        return SigmaSchedule(timesteps, np.append(trained[timesteps], 0.0))
    if spacing == "karras":
        roots = np.linspace(trained[-1] ** (1 / _KARRAS_RHO), trained[0] ** (1 / _KARRAS_RHO), steps)
        sigmas = roots**_KARRAS_RHO
    else:
        sigmas = np.exp(np.linspace(np.log(trained[-1]), np.log(trained[0]), steps))
    timesteps = np.interp(np.log(sigmas), np.log(trained), np.arange(TRAIN_STEPS)).round().astype(np.int64)
    return SigmaSchedule(timesteps, np.append(sigmas, 0.0))


def ddim_timesteps(steps: int) -> npt.NDArray[np.int64]:
    """Return the timesteps of the official "uniform" method, ascending: 1, 6, ..., 996 for 200 steps."""
    # The official code works only for divisors of 1000; other numbers of steps are spread evenly here.
    spread = np.arange(steps, dtype=np.int64) * TRAIN_STEPS // steps
    return np.minimum(spread + 1, TRAIN_STEPS - 1)


@dataclass(frozen=True)
class DDIMTables:
    """Coefficients of the DDIM steps, [steps] each, in ascending order of the timesteps."""

    timesteps: npt.NDArray[np.int64]
    alphas: Floats
    alphas_prev: Doubles
    sigmas: Doubles


def ddim_tables(steps: int, eta: float) -> DDIMTables:
    """Return the tables of the official DDIM sampler (Song et al. 2021, equation 16), bit-identical."""
    cumprod = alphas_cumprod()
    timesteps = ddim_timesteps(steps)
    alphas = cumprod[timesteps]
    alphas_prev = np.concatenate([cumprod[:1], alphas[:-1]]).astype(np.float64)
    # In the official code `alphas` is a torch tensor: division by it is multiplication by its float32 reciprocal.
    sigmas = eta * np.sqrt((1 - alphas_prev) * (1 / (1 - alphas)) * (1 - alphas / alphas_prev))
    return DDIMTables(timesteps, alphas, alphas_prev, sigmas)
