"""RMS2Sound as in the official pipeline: prompts padded to the limit, two denoiser calls per step."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from foley_export.networks.clap_text import ClapText
from foley_export.networks.denoiser import Denoiser

STEPS = 200
GUIDANCE = 3.5
_PAD_ID = 1  # RoBERTa's token id


def embed_text(clap: ClapText, tokens: Sequence[int]) -> Tensor:
    """Return the embedding [1, 512] of a text, padded to the maximum length."""
    positions: int = clap.text_branch.config.max_position_embeddings  # of tokens, after the padding's own
    padding = (0, positions - _PAD_ID - 1 - len(tokens))
    input_ids = functional.pad(torch.tensor([list(tokens)]), padding, value=_PAD_ID)
    return clap(input_ids, functional.pad(torch.ones(1, len(tokens), dtype=torch.long), padding))


def guided_noise(
    denoiser: Denoiser, latents: Tensor, timestep: Tensor, envelope: Tensor, embedding: Tensor, negative: Tensor
) -> Tensor:
    """Return guided noise [1, 8, 256, 16] from two calls of batch size 1; timestep [1], envelope [1, 1024]."""
    conditional, unconditional = (
        denoiser.predict_noise(latents, timestep, text, denoiser.control(envelope)) for text in (embedding, negative)
    )
    return unconditional + GUIDANCE * (conditional - unconditional)
