"""One call of a network as the official pipeline computes it."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from foley_bench.baseline import images, raft, sound
from foley_export.networks.bn_inception import FlowFeatures, RgbFeatures
from foley_export.networks.clap_text import ClapText
from foley_export.networks.denoiser import Denoiser
from foley_export.networks.network import Network
from foley_export.networks.optical_flow import OpticalFlow


def run(network: Network, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Compute the first outputs of `network` for `inputs`, both in the order of the contract.

    Optical flow is computed pair by pair, pictures are resized one by one, the denoiser runs branch by branch and
    prompts are padded to the limit. The other networks are called as they are.
    """
    if isinstance(network, OpticalFlow):
        return (torch.stack([raft.to_bytes(raft.pair_flow(network, *pair)) for pair in pairwise(inputs[0])]),)
    if isinstance(network, RgbFeatures):
        batch = torch.stack([images.rgb_input(frame) for frame in inputs[0][1:]])
        return (network.network(batch.to(inputs[0].device)),)
    if isinstance(network, FlowFeatures):
        batch = torch.stack([images.flow_input(flow) for flow in inputs[0]])
        return (network.network(batch.to(inputs[0].device)),)
    if isinstance(network, Denoiser):
        latents, timestep, envelope, embedding, negative_embedding, *_ = inputs
        return (sound.guided_noise(network, latents, timestep[:, 0], envelope, embedding, negative_embedding),)
    if isinstance(network, ClapText):
        return (sound.embed_text(network, inputs[0][0].tolist()),)
    outputs = network(*inputs)
    return outputs if isinstance(outputs, tuple) else (outputs,)
