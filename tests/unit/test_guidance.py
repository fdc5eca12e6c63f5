"""What guidance does to rows that share a batch, on a small denoiser."""

import numpy as np
import pytest
import torch

from foley.manifest import DenoiserConfig, Manifest
from foley_export.networks.denoiser import Denoiser
from foley_export.weights import fill

SMALL = Manifest(
    name="small",
    denoiser=DenoiserConfig(width=16, multipliers=(1, 2), residual_blocks=1, attention_levels=(1,), head_width=8),
)
TOLERANCE = 1e-5  # relative L2 error


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def denoiser() -> Denoiser:
    return fill(Denoiser(SMALL))


@pytest.fixture
def inputs(denoiser) -> list[torch.Tensor]:
    latents, _, envelope, embedding, negative_embedding, _ = denoiser.sample_inputs(batch=4)
    timestep = torch.tensor([[1], [250], [500], [999]])
    guidance = torch.tensor([[3.5], [1.0], [7.0], [1.0]])
    return [latents, timestep, envelope, embedding, negative_embedding, guidance]


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert actual.shape == expected.shape
    assert np.linalg.norm(actual - expected) <= TOLERANCE * np.linalg.norm(expected)


def test_it_combines_two_separate_calls(denoiser, inputs):
    latents, timestep, envelope, embedding, negative_embedding, guidance = inputs
    control = denoiser.control(envelope)
    conditional = denoiser.predict_noise(latents, timestep[:, 0], embedding, control)
    unconditional = denoiser.predict_noise(latents, timestep[:, 0], negative_embedding, control)
    assert_close(denoiser(*inputs), unconditional + guidance[:, :, None, None] * (conditional - unconditional))


@pytest.mark.parametrize(("guidance", "rows"), [([3.5, 1, 7, 1], 6), ([1, 1, 1, 1], 4), ([2, 2, 2, 2], 8)])
def test_rows_without_guidance_cost_one_branch(denoiser, inputs, guidance, rows):
    batches = []
    handle = denoiser.unet.register_forward_pre_hook(lambda _, arguments: batches.append(len(arguments[0])))
    denoiser(*inputs[:-1], torch.tensor(guidance, dtype=torch.float32)[:, None])
    handle.remove()
    assert batches == [rows]


def test_every_row_is_a_request_of_its_own(denoiser, inputs):
    alone = [denoiser(*(tensor[i : i + 1] for tensor in inputs)) for i in range(len(inputs[0]))]
    assert_close(denoiser(*inputs), torch.cat(alone))
