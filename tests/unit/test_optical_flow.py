"""RAFT for a video: the lookup against torch's own sampling, and chains of pairs that start from each other's flow."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from foley.manifest import OpticalFlowConfig
from foley_export.networks.optical_flow import Estimate, OpticalFlow, OpticalFlowWarm, _upsample
from foley_export.networks.raft_correlation import CorrelationPyramid
from foley_export.presets import TINY
from foley_export.weights import fill


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.inference_mode():
        yield


def sampled(first: torch.Tensor, second: torch.Tensor, points: torch.Tensor, levels: int, radius: int) -> torch.Tensor:
    """What torchvision's RAFT looks up: `grid_sample` at every level."""
    channels, height, width = first.shape[1:]
    side = torch.arange(-radius, radius + 1.0)
    offsets = torch.stack(torch.meshgrid(side, side, indexing="ij"), -1)
    volume = (first.flatten(2).transpose(1, 2) @ second.flatten(2) / channels**0.5).reshape(-1, 1, height, width)
    centres = points.permute(0, 2, 3, 1).reshape(-1, 1, 1, 2)
    found = []
    for level in range(levels):
        last = torch.tensor([volume.shape[3] - 1, volume.shape[2] - 1])
        places = 2 * (centres / 2**level + offsets) / last - 1
        found.append(functional.grid_sample(volume, places, align_corners=True).flatten(1))
        volume = functional.avg_pool2d(volume, 2)
    return torch.cat(found, 1).unflatten(0, (-1, height, width)).permute(0, 3, 1, 2)


@given(
    levels=st.integers(1, 3),
    radius=st.integers(1, 4),
    height=st.integers(8, 11),
    width=st.integers(8, 13),
    spread=st.sampled_from([0.0, 0.5, 4.0, 30.0, 1e6]),
    seed=st.integers(0, 1000),
)
@settings(deadline=None, max_examples=60)
def test_the_lookup_reads_between_places_and_zeros_outside(levels, radius, height, width, spread, seed):
    random = torch.Generator().manual_seed(seed)
    first, second = torch.randn(2, 2, 5, height, width, generator=random)
    columns, rows = torch.meshgrid(torch.arange(width), torch.arange(height), indexing="xy")
    points = torch.stack([columns, rows]) + spread * torch.randn(2, 2, height, width, generator=random)
    correlation = CorrelationPyramid(levels, radius)
    ours = correlation.lookup(correlation.build(first, second), points)
    theirs = sampled(first, second, points, levels, radius)
    assert ours.shape == (2, correlation.width, height, width)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def warm(**numbers: int) -> OpticalFlowWarm:
    config = TINY.optical_flow.model_copy(update=numbers)
    return fill(OpticalFlowWarm(TINY.model_copy(update={"optical_flow": config})))


@pytest.fixture(scope="module")
def frames() -> torch.Tensor:
    return torch.randint(0, 256, (6, 256, 344, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_without_a_chain_it_is_raft(frames):
    alone = warm(chain=1, first_updates=TINY.optical_flow.updates)
    exact = OpticalFlow(TINY)
    exact.load_state_dict(alone.state_dict())
    torch.testing.assert_close(alone.flow(frames), exact.eval().flow(frames))


def test_each_pair_of_a_chain_starts_from_the_flow_of_the_one_before(frames):
    network = warm(chain=3, first_updates=2, warm_updates=1)
    expected: list[Estimate] = []
    for nth in range(5):
        pairs = network.encode_pairs(frames[nth : nth + 2])
        estimate = pairs.initial_estimate()
        if nth % 3:
            estimate = estimate._replace(flow=expected[-1].flow)
        for _ in range(1 if nth % 3 else 2):
            estimate = network.update(pairs, estimate)
        expected.append(estimate)
    one_by_one = Estimate(*map(torch.cat, zip(*expected, strict=True)))
    flow = network.flow(frames)
    torch.testing.assert_close(flow, _upsample(one_by_one.flow, network.mask_predictor(one_by_one.hidden)))
    chunks = torch.cat([network.flow(frames[:4]), network.flow(frames[3:])])  # of whole chains
    torch.testing.assert_close(flow, chunks)


def test_the_numbers_of_updates_are_those_of_the_manifest(frames):
    network = warm(chain=2, first_updates=3, warm_updates=1)
    sizes = []
    network.update_block.flow_head.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    network.flow(frames)  # 5 pairs: 3 chains, the last of which is filled up
    assert sizes == [3, 3, 3, 3]


def test_default_numbers_are_fewer_than_rafts():
    config = OpticalFlowConfig()
    assert config.first_updates + (config.chain - 1) * config.warm_updates < config.chain * config.updates
