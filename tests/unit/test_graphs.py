"""The graphs of the bundle `tiny` match their torch modules for any batch and length, and weights are stored once."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from safetensors.torch import load_file

from foley import bundle as bundles
from foley.bundle import graph_file, weights_file
from foley.errors import CheckpointError
from foley.stages import networks
from foley_export.make import load_network, save_weights
from foley_export.networks import NETWORKS
from foley_export.networks.attention import attention
from foley_export.onnx_export import export
from foley_export.presets import TINY
from foley_export.weights import fill

TOLERANCE = 5e-4  # relative L2 error
INLINE_BYTES = 64_000  # maximum size of constants in a graph; larger ones must be in the safetensors file


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> bundles.Bundle:
    return bundles.read(tiny_bundle)


def check(bundle: bundles.Bundle, stage: str, inputs: tuple[torch.Tensor, ...], tolerance: float = TOLERANCE) -> None:
    """Assert that graph and module agree on `inputs`; integers may differ by one step of float rounding."""
    network = load_network(bundle, stage)
    session = onnxruntime.InferenceSession(bundle.path(graph_file(stage)), providers=["CPUExecutionProvider"])
    with torch.inference_mode():
        outputs = network(*inputs)
    expected = [tensor.numpy() for tensor in (outputs if isinstance(outputs, tuple) else (outputs,))]
    named = {tensor.name: array.numpy() for tensor, array in zip(network.stage.inputs, inputs, strict=True)}
    for tensor, ours, theirs in zip(network.stage.outputs, session.run(None, named), expected, strict=True):
        assert ours.shape == theirs.shape, tensor.name
        assert ours.dtype == tensor.numpy_dtype, tensor.name
        if tensor.dtype == "uint8":
            differing = np.abs(ours.astype(int) - theirs.astype(int))
            assert differing.max() <= 1, tensor.name
            assert differing.mean() < 1e-3, tensor.name
        elif tensor.dtype == "int64":
            np.testing.assert_array_equal(ours, theirs, tensor.name)
        else:
            error = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
            assert error <= tolerance, (tensor.name, error)


@pytest.mark.parametrize("stage", [name for name in NETWORKS if name != "denoiser"])
def test_graph_matches_module(bundle: bundles.Bundle, stage: str) -> None:
    network = load_network(bundle, stage)
    for size in (1, 4):  # differ from the traced sizes
        lengths = {"frames": size + 1, "pairs": size, "tokens": 5 * size}
        check(bundle, stage, network.sample_inputs(size, lengths, seed=size))


@pytest.mark.parametrize("guidance", [[1.0], [3.5], [1.0, 1.0], [2.0, 1.0, 3.5]])
def test_denoiser_uses_guidance_and_timestep_per_row(bundle: bundles.Bundle, guidance: list[float]) -> None:
    """Rows with guidance 1 run only one branch, independently of the rest of the batch."""
    latents, _, envelope, embedding, negative, _ = load_network(bundle, "denoiser").sample_inputs(len(guidance))
    timestep = torch.randint(0, 1000, (len(guidance), 1), generator=torch.Generator().manual_seed(0))
    scale = torch.tensor(guidance)[:, None]
    check(bundle, "denoiser", (latents, timestep, envelope, embedding, negative, scale))


def test_attention_function_matches_kernel(bundle: bundles.Bundle) -> None:
    """A runtime without the kernel, like ONNX's reference evaluator, runs the function in the graph."""
    model = onnx.load(bundle.path(graph_file("denoiser")), load_external_data=False)
    (function,) = model.functions
    (node,) = [node for node in model.graph.node if node.op_type == function.name][:1]
    names = ["query", "key", "value"]
    value_type = onnx.helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, ["batch", "cells", 48])
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(function.name, names, ["out"], domain=function.domain, num_heads=3)],
        node.name,
        [onnx.helper.make_value_info(name, value_type) for name in names],
        [onnx.helper.make_value_info("out", value_type)],
    )
    single_function = onnx.helper.make_model(
        graph, functions=[function], opset_imports=model.opset_import, ir_version=10
    )
    inputs = dict(zip(names, np.random.default_rng(0).standard_normal((3, 2, 7, 48)).astype(np.float32), strict=True))
    expected = attention(*map(torch.from_numpy, inputs.values()), heads=3)
    for runtime in (
        ReferenceEvaluator(single_function),
        onnxruntime.InferenceSession(single_function.SerializeToString()),
    ):
        np.testing.assert_allclose(runtime.run(None, inputs)[0], expected, atol=1e-5)


def test_graphs_match_contract_of_their_stage(bundle: bundles.Bundle) -> None:
    for name, stage in networks(bundle.manifest).items():
        graph = onnx.load(bundle.path(graph_file(name)), load_external_data=False).graph
        for values, tensors in ((graph.input, stage.inputs), (graph.output, stage.outputs)):
            assert [value.name for value in values] == [tensor.name for tensor in tensors]
            for value, tensor in zip(values, tensors, strict=True):
                value_type = value.type.tensor_type
                shape = tuple(size.dim_param or size.dim_value for size in value_type.shape.dim)
                assert shape == stage.shape(tensor)
                assert onnx.helper.tensor_dtype_to_np_dtype(value_type.elem_type) == tensor.numpy_dtype


def test_weights_are_stored_once(bundle: bundles.Bundle) -> None:
    """Large initializers of every graph are in its safetensors file; CLAP's mel tables are computed."""
    for name in NETWORKS:
        model = onnx.load(bundle.path(graph_file(name)), load_external_data=False)
        for tensor in model.graph.initializer:
            if tensor.external_data:
                location = {entry.key: entry.value for entry in tensor.external_data}["location"]
                assert location == Path(weights_file(name)).name
            elif not tensor.name.startswith("log_mel"):
                assert len(tensor.raw_data) <= INLINE_BYTES, (name, tensor.name)


@pytest.mark.parametrize("stage", ["rgb_features", "clap_audio"])  # batch normalisation; tables of integers
def test_half_precision_weights_are_stored_half_and_computed_in_float32(tmp_path: Path, stage: str) -> None:
    save_weights(fill(NETWORKS[stage](TINY)), tmp_path / weights_file(stage), half=True)
    half = bundles.Bundle(tmp_path, TINY)
    network = load_network(half, stage)
    assert all(tensor.dtype in (torch.float32, torch.int64) for tensor in network.state_dict().values())
    export(network, half.path(weights_file(stage)), half.path(graph_file(stage)))
    check(half, stage, network.sample_inputs(2, {"frames": 3}), tolerance=1e-5)

    stored = load_file(half.path(weights_file(stage)))
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16, torch.int64}
    for tensor in onnx.load(half.path(graph_file(stage)), load_external_data=False).graph.initializer:
        dtype = {torch.float16: onnx.TensorProto.FLOAT16, torch.int64: onnx.TensorProto.INT64}
        assert bool(tensor.external_data) == (tensor.name in stored)
        if tensor.name in stored:
            assert tensor.data_type == dtype[stored[tensor.name].dtype]


@pytest.mark.parametrize("value", [65_520.0, -1e5, float("nan")])
def test_rejects_weights_outside_half_range(tmp_path: Path, value: float) -> None:
    network = fill(NETWORKS["vocoder"](TINY))
    name, weight = next(network.named_parameters())
    weight.data.view(-1)[3] = value
    with pytest.raises(CheckpointError, match=name):
        save_weights(network, tmp_path / "vocoder.safetensors", half=True)
    assert list(tmp_path.iterdir()) == []


def test_presets_have_the_same_networks() -> None:
    """Every preset builds every network from the same classes."""
    assert set(NETWORKS) == set(networks(TINY))
