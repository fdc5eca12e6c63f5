"""The sound side as the official pipeline runs it: padded prompts, 200 steps of two calls each, the peak."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from foley.envelope import Floats
from foley.sampler import LATENTS_SHAPE
from foley.solvers import ddim, draws
from foley_export.networks.clap_text import ClapText
from foley_export.networks.denoiser import Denoiser

STEPS = 200
GUIDANCE = 3.5
ETA = 1.0
_PADDING = 1  # RoBERTa's token id


def embed(clap: ClapText, tokens: Sequence[int]) -> Tensor:
    """The embedding [1, 512] of a text of these `tokens`, padded to as many as the network reads."""
    positions: int = clap.text_branch.config.max_position_embeddings  # of tokens, after the padding's own
    missing = (0, positions - _PADDING - 1 - len(tokens))
    input_ids = functional.pad(torch.tensor([list(tokens)]), missing, value=_PADDING)
    return clap(input_ids, functional.pad(torch.ones(1, len(tokens), dtype=torch.long), missing))


def guided_noise(
    denoiser: Denoiser, latents: Tensor, timestep: Tensor, envelope: Tensor, embedding: Tensor, negative: Tensor
) -> Tensor:
    """Noise [1, 8, 256, 16] with guidance, from two calls of one row each; timestep [1], envelope [1, 1024]."""
    conditional, unconditional = (
        denoiser.branch(latents, timestep, text, denoiser.control(envelope)) for text in (embedding, negative)
    )
    return unconditional + GUIDANCE * (conditional - unconditional)


def denoise(denoiser: Denoiser, envelope: Tensor, embedding: Tensor, negative: Tensor) -> Iterator[Floats]:
    """The latents [8, 256, 16] after every step; inputs [1, 1024], [1, 512] and [1, 512]."""
    noise = draws(np.random.default_rng(0), LATENTS_SHAPE)

    def predict(latents: Floats, timestep: int) -> Floats:
        row = torch.from_numpy(latents)[None]
        return guided_noise(denoiser, row, torch.tensor([timestep]), envelope, embedding, negative)[0].numpy()

    return ddim(predict, next(noise), STEPS, ETA, noise)
