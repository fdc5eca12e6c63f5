"""One sound's calls of the served denoiser, for the loop in the client and the one on the server."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from foley.sampler import Denoise, Floats, Step

Infer = Callable[..., Mapping[str, npt.NDArray[Any]]]
"""(model, names, **inputs) -> the named outputs of a served model."""


def served_denoiser(infer: Infer, envelope: Floats, embedding: Floats, negative_embedding: Floats) -> Denoise:
    """The denoiser of one loop, on an envelope [1024] and the prompts' embeddings [512]."""
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
