"""The sound side's networks against the official implementation, at the official size."""

import numpy as np
import pytest
import torch

from foley import clip, sampler
from foley.manifest import DenoiserConfig, Manifest
from foley_export.networks.denoiser import Denoiser
from foley_export.networks.vae_decoder import VaeDecoder
from foley_export.networks.vocoder import Vocoder
from foley_export.weights import fill

TOLERANCE = 1e-4  # relative L2 error

OFFICIAL_PARTS = {
    Denoiser: ("model.diffusion_model.",),
    VaeDecoder: ("first_stage_model.post_quant_conv.", "first_stage_model.decoder."),
    Vocoder: ("first_stage_model.vocoder.",),
}


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def denoiser() -> Denoiser:
    return fill(Denoiser(Manifest(name="paper")))


@pytest.fixture(scope="module")
def small() -> Denoiser:
    config = DenoiserConfig(width=16, multipliers=(1, 2), residual_blocks=1, attention_levels=(1,), head_width=8)
    return fill(Denoiser(Manifest(name="small", denoiser=config)))


@pytest.mark.parametrize("network", OFFICIAL_PARTS)
def test_state_dict_is_the_official_one(network, checkpoint_keys):
    with torch.device("meta"):
        ours = network(Manifest(name="paper"))
    shapes = {network.checkpoint_key(key): list(ours.checkpoint_shape(key)) for key in ours.state_dict()}
    official = {
        key: entry["shape"]
        for key, entry in checkpoint_keys("rms2sound.json.gz").items()
        if key.startswith(OFFICIAL_PARTS[network])
    }
    assert shapes == official


def test_noise(denoiser, vector, relative_error):
    arrays = {name: torch.from_numpy(array) for name, array in vector("unet_controlnet").items()}
    inputs = arrays["latents"], arrays["timesteps"], arrays["embedding"]
    control = denoiser.control(arrays["rms"][:, 0, :, 0])
    assert relative_error(control, arrays["control"]) <= TOLERANCE
    assert relative_error(denoiser.branch(*inputs, control), arrays["noise"]) <= TOLERANCE
    assert relative_error(denoiser.branch(*inputs), arrays["noise_without_control"]) <= TOLERANCE


def test_guided_trajectory(denoiser, vector, relative_error):
    arrays = vector("ddim_trajectory")
    envelope, embedding, negative_embedding = (
        torch.from_numpy(arrays[name]).reshape(1, -1) for name in ("rms", "embedding", "negative_embedding")
    )
    guidance = torch.full((1, 1), float(arrays["guidance"]))

    def denoise(latents: np.ndarray, timestep: int) -> np.ndarray:
        step = torch.tensor([[timestep]])
        noise = denoiser(torch.from_numpy(latents)[None], step, envelope, embedding, negative_embedding, guidance)
        return noise[0].numpy()

    steps = sampler.ddim(denoise, arrays["x_T"][0], steps=4, eta=0.0, random=np.random.default_rng(0))
    for ours, official in zip(steps, arrays["latents"], strict=True):
        assert relative_error(ours, official) <= TOLERANCE


def test_vae_decoder(vector, relative_error):
    arrays = vector("vae_decoder")
    mel = fill(VaeDecoder(Manifest(name="paper")))(torch.from_numpy(arrays["latents"]))
    assert relative_error(mel, arrays["mel"][:, 0]) <= TOLERANCE


def test_vocoder(vector, relative_error):
    arrays = vector("vocoder")
    vocoder = fill(Vocoder(Manifest(name="paper")))
    mel = torch.from_numpy(arrays["mel"][:, 0])
    official = arrays["waveform"][:, 0]
    assert relative_error(vocoder.untrimmed(mel), official) <= TOLERANCE
    assert relative_error(vocoder(mel), official[:, : mel.shape[1] * clip.HOP]) <= TOLERANCE


class TestGuidance:
    """What guidance does to rows that share a batch, on a small network."""

    @pytest.fixture
    def inputs(self, small) -> list[torch.Tensor]:
        latents, _, envelope, embedding, negative_embedding, _ = small.sample_inputs(batch=4)
        timestep = torch.tensor([[1], [250], [500], [999]])
        guidance = torch.tensor([[3.5], [1.0], [7.0], [1.0]])
        return [latents, timestep, envelope, embedding, negative_embedding, guidance]

    def test_combines_two_separate_calls(self, small, inputs, relative_error):
        latents, timestep, envelope, embedding, negative_embedding, guidance = inputs
        control = small.control(envelope)
        conditional = small.branch(latents, timestep[:, 0], embedding, control)
        unconditional = small.branch(latents, timestep[:, 0], negative_embedding, control)
        expected = unconditional + guidance[:, :, None, None] * (conditional - unconditional)
        assert relative_error(small(*inputs), expected) <= 1e-5

    @pytest.mark.parametrize(("guidance", "rows"), [([3.5, 1, 7, 1], 6), ([1, 1, 1, 1], 4), ([2, 2, 2, 2], 8)])
    def test_rows_without_guidance_cost_one_branch(self, small, inputs, guidance, rows):
        batches = []
        handle = small.unet.register_forward_pre_hook(lambda _, arguments: batches.append(len(arguments[0])))
        small(*inputs[:-1], torch.tensor(guidance, dtype=torch.float32)[:, None])
        handle.remove()
        assert batches == [rows]

    def test_every_row_is_a_request_of_its_own(self, small, inputs, relative_error):
        together = small(*inputs)
        alone = torch.cat([small(*(tensor[i : i + 1] for tensor in inputs)) for i in range(len(together))])
        assert relative_error(together, alone) <= 1e-5
