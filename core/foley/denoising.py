"""Adapts the served denoiser to the sampler's callback, for the client's loop and the server's loop."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from foley.envelope import Floats
from foley.sampler import Denoise, Step

Infer = Callable[..., Mapping[str, npt.NDArray[Any]]]
"""(model, output names, **inputs) -> outputs by name."""


def served_denoiser(infer: Infer, envelope: Floats, embedding: Floats, negative_embedding: Floats) -> Denoise:
    """Return the denoiser callback for sampling one sound.

    Args:
        infer: Calls a served model.
        envelope: RMS envelope, float32 [1024].
        embedding: CLAP embedding of the prompt, float32 [512].
        negative_embedding: CLAP embedding of the negative prompt, float32 [512].
    """
    conditions = {
        "envelope": envelope[None],
        "embedding": embedding[None],
        "negative_embedding": negative_embedding[None],
    }

    def denoise(latents: Floats, step: Step) -> Floats:
        inputs = {
            "latents": latents[None],
            "timestep": np.array([[step.timestep]], np.int64),
            "guidance": np.array([[step.guidance]], np.float32),
            **conditions,
        }
        noise: Floats = infer("denoiser", ("noise",), **inputs)["noise"][0]
        return noise

    return denoise
