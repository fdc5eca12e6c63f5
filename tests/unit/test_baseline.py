"""The baseline of the benchmarks matches the networks of this project."""

from itertools import pairwise

import pytest
import torch

from foley_bench.baseline import raft, sound
from foley_export.networks.denoiser import Denoiser
from foley_export.networks.optical_flow import OpticalFlow
from foley_export.presets import TINY
from foley_export.weights import fill

TOLERANCE = 1e-5  # relative L2 error


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.inference_mode():
        yield


def test_pairwise_flow_matches_flow_of_video():
    network = fill(OpticalFlow(TINY))
    frames = torch.randint(0, 256, (4, 256, 344, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    ours = network.flow(frames)
    baseline = torch.stack([raft.pair_flow(network, first, second) for first, second in pairwise(frames)])
    assert (ours - baseline).norm() <= 1e-4 * baseline.norm()


def test_two_calls_per_step_match_batched_guidance():
    network = fill(Denoiser(TINY))
    latents, _, envelope, embedding, negative, guidance = network.sample_inputs(1)
    scale = torch.full_like(guidance, sound.GUIDANCE)
    ours, *_ = network(latents, torch.tensor([[500]]), envelope, embedding, negative, scale)
    baseline = sound.guided_noise(network, latents, torch.tensor([500]), envelope, embedding, negative)
    assert (ours - baseline).norm() <= TOLERANCE * baseline.norm()
