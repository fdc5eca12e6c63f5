"""One sound's calls of the served denoiser, for the loop in the client and the one on the server."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from foley.sampler import Denoise, Floats, Sampling, Step

Infer = Callable[..., Mapping[str, npt.NDArray[Any]]]
"""(model, names, **inputs) -> the named outputs of a served model."""


def served_denoiser(
    infer: Infer, sampling: Sampling, envelope: Floats, embedding: Floats, negative_embedding: Floats
) -> Denoise:
    """The denoiser of one loop, on an envelope [1024] and the prompts' embeddings [512].

    Where `sampling` reuses deep features they are kept here between two calls, so that the server keeps nothing.
    """
    conditions = {
        "envelope": envelope[None],
        "embedding": embedding[None],
        "negative_embedding": negative_embedding[None],
    }
    deep: npt.NDArray[Any] | None = None

    def denoise(latents: Floats, step: Step) -> Floats:
        nonlocal deep
        inputs = {
            "latents": latents[None],
            "timestep": np.array([[step.timestep]], np.int64),
            "guidance": np.array([[step.guidance]], np.float32),
            **conditions,
        }
        if step.reuse:
            found = infer("denoiser_reuse", ("noise",), deep=deep, **inputs)
        elif sampling.reuse == 1:
            found = infer("denoiser", ("noise",), **inputs)
        else:
            found = infer("denoiser", ("noise", "deep"), **inputs)
            deep = found["deep"]
        noise: Floats = found["noise"][0]
        return noise

    return denoise
