"""Input sizes of all benchmarks: a 10 s clip, with frames in chunks as the client sends them."""

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt
import torch

from foley import clip
from foley_bench.baseline.sound import GUIDANCE
from foley_export.networks.denoiser import Denoiser
from foley_export.networks.network import Network

PROMPT = "a stick hits metal"
SIZES: Mapping[str, int] = {"frames": clip.CHUNK_PAIRS + 1, "pairs": clip.CHUNK_PAIRS, "tokens": 12}
"""Dynamic dimensions of one call."""

CHUNKS = (clip.CLIP_FRAMES - 1) / clip.CHUNK_PAIRS
PROMPTS = 2  # the prompt, and the text that the sound should be unlike
CALLS: Mapping[str, float] = {
    **dict.fromkeys(("optical_flow", "rgb_features", "flow_features"), CHUNKS),
    "video2rms": 1,
    "clap_text": PROMPTS,
    "denoiser": 1,  # for each step
    **dict.fromkeys(("vae_decoder", "vocoder"), 1),
}
"""Networks of a clip with a text prompt -> number of calls of `SIZES`."""


def sample(network: Network, batch: int = 1, guidance: float = GUIDANCE) -> tuple[torch.Tensor, ...]:
    """Return random inputs of one call in the stage's order; for a denoiser, with `guidance` in every row."""
    inputs = network.sample_inputs(batch, dict(SIZES))
    if not isinstance(network, Denoiser):
        return inputs
    return tuple(
        torch.full_like(value, guidance) if tensor.name == "guidance" else value
        for tensor, value in zip(network.stage.inputs, inputs, strict=True)
    )


def named(network: Network, inputs: tuple[torch.Tensor, ...]) -> dict[str, npt.NDArray[Any]]:
    """Return the inputs as arrays by name, as ONNX Runtime and Triton take them."""
    return {tensor.name: value.numpy() for tensor, value in zip(network.stage.inputs, inputs, strict=True)}
