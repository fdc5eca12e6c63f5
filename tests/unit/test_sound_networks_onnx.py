"""The sound side's networks as ONNX graphs: the same numbers as in torch, for any batch."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from foley.manifest import DenoiserConfig, Manifest, VaeConfig, VocoderConfig
from foley_export.networks.denoiser import Denoiser
from foley_export.networks.network import Network
from foley_export.networks.vae_decoder import VaeDecoder
from foley_export.networks.vocoder import Vocoder
from foley_export.weights import fill

TOLERANCE = 5e-4  # relative L2 error

SMALL = Manifest(
    name="small",
    denoiser=DenoiserConfig(width=16, multipliers=(1, 2), residual_blocks=1, attention_levels=(1,), head_width=8),
    vae_decoder=VaeConfig(width=8, residual_blocks=1),
    vocoder=VocoderConfig(width=64),
)


def export(network: Network, path: Path) -> onnxruntime.InferenceSession:
    """`network` as an ONNX graph with a dynamic batch, loaded."""
    inputs = network.sample_inputs()
    torch.onnx.export(
        network,
        inputs,
        path,
        dynamo=True,
        input_names=[tensor.name for tensor in network.stage.inputs],
        output_names=[tensor.name for tensor in network.stage.outputs],
        dynamic_shapes=[{0: torch.export.Dim("batch")} for _ in inputs],
        verbose=False,
    )
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def error(network: Network, session: onnxruntime.InferenceSession, inputs: tuple[torch.Tensor, ...]) -> float:
    """Relative L2 error of the graph's answer."""
    with torch.inference_mode():
        expected = network(*inputs).numpy()
    arrays = {tensor.name: array.numpy() for tensor, array in zip(network.stage.inputs, inputs, strict=True)}
    (actual,) = session.run(None, arrays)
    assert actual.shape == expected.shape
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("network", [VaeDecoder, Vocoder])
def test_decoders(network, tmp_path):
    ours = fill(network(SMALL))
    session = export(ours, tmp_path / "network.onnx")
    for batch in (1, 2, 4):
        assert error(ours, session, ours.sample_inputs(batch, seed=batch)) <= TOLERANCE


def test_denoiser(tmp_path):
    ours = fill(Denoiser(SMALL))
    session = export(ours, tmp_path / "network.onnx")
    for guidance in ([1.0], [3.5], [3.5, 1.0], [1.0, 1.0], [2.0, 3.0], [1.0, 2.5, 1.0, 7.0, 1.0]):
        latents, _, envelope, embedding, negative_embedding, _ = ours.sample_inputs(len(guidance))
        timestep = torch.randint(0, 1000, (len(guidance), 1), generator=torch.Generator().manual_seed(0))
        inputs = (latents, timestep, envelope, embedding, negative_embedding, torch.tensor(guidance)[:, None])
        assert error(ours, session, inputs) <= TOLERANCE, guidance
