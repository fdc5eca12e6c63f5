"""The video side's networks and CLAP as ONNX graphs: the same numbers as in torch, for any length and batch."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import save_file

from foley.manifest import (
    ClapAudioConfig,
    ClapTextConfig,
    FeaturesConfig,
    Manifest,
    OpticalFlowConfig,
    Video2RMSConfig,
)
from foley_export.networks.bn_inception import FlowFeatures, RgbFeatures
from foley_export.networks.clap_audio import ClapAudio
from foley_export.networks.clap_text import ClapText
from foley_export.networks.network import Network
from foley_export.networks.optical_flow import OpticalFlow
from foley_export.networks.video2rms import Video2RMS
from foley_export.onnx_export import export
from foley_export.weights import fill

TOLERANCE = 5e-4  # relative L2 error
LEVELS_OFF_BY_ONE = 1e-4  # share of flow bytes that float rounding may truncate the other way

SMALL = Manifest(
    name="small",
    optical_flow=OpticalFlowConfig(
        encoder_widths=(8, 8, 12, 16, 32),
        hidden_width=12,
        correlation_levels=3,
        correlation_radius=2,
        motion_correlation_widths=(16, 12),
        motion_flow_widths=(8, 6),
        motion_width=16,
        head_width=16,
        updates=2,
    ),
    rgb_features=FeaturesConfig(width_divisor=32),
    flow_features=FeaturesConfig(width_divisor=16),
    video2rms=Video2RMSConfig(lstm_width=24),
    clap_text=ClapTextConfig(vocabulary=300, max_tokens=64, width=32, layers=2, heads=4, feed_forward_width=64),
    clap_audio=ClapAudioConfig(width=16, depths=(2, 1, 1, 1), heads=(1, 2, 4, 8)),
)

Run = Callable[..., list[np.ndarray]]


@pytest.fixture
def graph(tmp_path: Path) -> Callable[[Network], Run]:
    """`graph(network)`: the exported network as a function of tensors."""

    def load(network: Network) -> Run:
        weights, path = tmp_path / "network.safetensors", tmp_path / "network.onnx"
        save_file({key: tensor.contiguous() for key, tensor in network.state_dict().items()}, weights)
        export(network, weights, path)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        names = [tensor.name for tensor in network.stage.inputs]
        return lambda *inputs: session.run(None, {n: x.numpy() for n, x in zip(names, inputs, strict=True)})

    return load


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def error(actual: np.ndarray, expected: torch.Tensor) -> float:
    """Relative L2 error."""
    assert actual.shape == expected.shape
    return float(np.linalg.norm(actual - expected.numpy()) / np.linalg.norm(expected.numpy()))


def test_video2rms(graph):
    network = fill(Video2RMS(SMALL))
    run = graph(network)
    for batch in (1, 2, 4):
        inputs = network.sample_inputs(batch, seed=batch)
        envelope, classes = network(*inputs)
        assert len(classes.unique()) > 2
        actual_envelope, actual_classes = run(*inputs)
        assert np.array_equal(actual_classes, classes)
        assert np.array_equal(actual_envelope, envelope)


@pytest.mark.parametrize("network_class", [RgbFeatures, FlowFeatures])
def test_features(graph, network_class):
    network = fill(network_class(SMALL))
    run = graph(network)
    for length in (2, 3, 9):
        inputs = network.sample_inputs(lengths={"frames": length, "pairs": length}, seed=length)
        (features,) = run(*inputs)
        assert error(features, network(*inputs)) <= TOLERANCE


def test_optical_flow(graph):
    network = fill(OpticalFlow(SMALL))
    run = graph(network)
    for frames in (2, 3, 9):
        inputs = network.sample_inputs(lengths={"frames": frames}, seed=frames)
        expected = network(*inputs).numpy().astype(int)
        (flow,) = run(*inputs)
        assert flow.shape == expected.shape
        assert flow.dtype == np.uint8
        off = np.abs(flow - expected)
        assert off.max() <= 1
        assert off.mean() <= LEVELS_OFF_BY_ONE


def test_clap_text(graph):
    network = fill(ClapText(SMALL))
    run = graph(network)
    for batch, tokens in ((1, 2), (2, 3), (3, 64), (16, 17)):
        ids = torch.randint(3, SMALL.clap_text.vocabulary, (batch, tokens), generator=torch.Generator().manual_seed(0))
        mask = torch.ones_like(ids)
        ids[0, tokens // 2 + 1 :], mask[0, tokens // 2 + 1 :] = 1, 0
        (embedding,) = run(ids, mask)
        assert error(embedding, network(ids, mask)) <= TOLERANCE


def test_clap_audio(graph):
    network = fill(ClapAudio(SMALL))
    run = graph(network)
    for batch in (1, 2, 3):
        inputs = network.sample_inputs(batch, seed=batch)
        (embedding,) = run(*inputs)
        assert error(embedding, network(*inputs)) <= TOLERANCE
