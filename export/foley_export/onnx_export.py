"""Exports torch networks to ONNX graphs whose weights stay in the safetensors file beside them.

The external data of an ONNX initializer is a file, an offset and a length. Referring to the safetensors file stores
the weights once, and a bundle with graphs runs without torch.
"""

import json
import struct
import warnings
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxscript.optimizer
import torch
from safetensors.numpy import load_file

from foley.bundle import Precision
from foley_export.networks import attention
from foley_export.networks.network import Network
from foley_export.precision import HALF, convert_to_half

OPSET = 20
MAX_FOLDED_SIZE = 512  # elements of the largest constant that is folded


def export(network: Network, weights: Path, destination: Path, precision: Precision = "fp32") -> None:
    """Write the graph of `network` to `destination`, with external data in `weights` in the same folder.

    Inputs, outputs and dynamic dimensions are those of the network's stage for every `precision`. Half-precision graphs
    are for GPUs (see `Network.for_gpu`).
    """
    if precision != "fp32":
        network.for_gpu()
    stage = network.stage
    dynamic = [
        {axis: torch.export.Dim.AUTO for axis, size in enumerate(stage.shape(tensor)) if isinstance(size, str)}
        for tensor in stage.inputs
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns about its own deprecations
        program = torch.onnx.export(
            network.eval(),
            network.sample_inputs(),
            dynamo=True,
            dynamic_shapes=tuple(dynamic),
            input_names=[tensor.name for tensor in stage.inputs],
            output_names=[tensor.name for tensor in stage.outputs],
            opset_version=OPSET,
            optimize=False,
            verbose=False,
        )
    assert program is not None
    model = program.model
    _simplify(model)
    attention.add_function(model)
    _set_shapes(model, network)
    _externalize_weights(model, weights, destination.parent)
    if precision != "fp32":
        convert_to_half(model, HALF[precision], network.full_precision)
        _simplify(model)
    ir.passes.common.ClearMetadataAndDocStringPass()(model)  # the exporter's stack traces, larger than the graph
    ir.save(model, destination)


def _simplify(model: ir.Model) -> None:
    """Fold shape computations and other small constants, and remove unused nodes.

    Rewrites that change weights (batch norm into convolutions, transposed matrices) are excluded, because they would
    duplicate what the safetensors file holds; ONNX Runtime and TensorRT apply them while loading.
    """
    ir.passes.common.InlinePass()(model)
    onnxscript.optimizer.fold_constants_ir(model, should_fold=_is_small)
    ir.passes.common.RemoveUnusedNodesPass()(model)


def _is_small(node: ir.Node) -> bool | None:
    constants = [value.const_value for value in node.inputs if value is not None and value.const_value is not None]
    return None if all(constant.size <= MAX_FOLDED_SIZE for constant in constants) else False


def _set_shapes(model: ir.Model, network: Network) -> None:
    """Set the shapes of the graph's inputs and outputs to the stage's, with its names for dynamic dimensions."""
    stage = network.stage
    pairs = [*zip(model.graph.inputs, stage.inputs, strict=True), *zip(model.graph.outputs, stage.outputs, strict=True)]
    for value, tensor in pairs:
        value.shape = ir.Shape(stage.shape(tensor))


def _externalize_weights(model: ir.Model, weights: Path, folder: Path) -> None:
    """Make every initializer that is a tensor of `weights` external data in that file; others stay inline.

    Weights stored as float16 are cast to float32 in the graph, which is exact; runtimes fold the cast while loading.
    """
    tensors = tensor_locations(weights)
    stored = load_file(weights)
    for name, value in list(model.graph.initializers.items()):
        if name not in tensors or value.const_value is None:
            continue
        if not np.array_equal(value.const_value.numpy(), stored[name]):
            raise RuntimeError(f"the exporter changed the weights {name} under their name")
        offset, length = tensors[name]
        external = ir.ExternalTensor(
            weights.relative_to(folder),
            offset,
            length,
            ir.DataType.from_numpy(stored[name].dtype),
            shape=ir.Shape(stored[name].shape),
            name=name,
            base_dir=folder,
        )
        if external.dtype != value.const_value.dtype:
            value = _cast(model.graph, value, external.dtype)
        value.const_value = external


def _cast(graph: ir.Graph, value: ir.Value, stored: ir.DataType) -> ir.Value:
    """Replace `value` by a cast from a new initializer of the same name and dtype `stored`; return the initializer."""
    name = value.name
    assert name is not None
    initializer = ir.Value(name=name, shape=value.shape, type=ir.TensorType(stored))
    assert value.dtype is not None
    cast = ir.node("Cast", [initializer], {"to": value.dtype})
    cast.outputs[0].name = f"{name}_{value.dtype.name.lower()}"
    ir.convenience.replace_all_uses_with(value, cast.outputs[0])
    graph.initializers[name] = initializer
    graph.insert_before(graph[0], cast)
    return initializer


def tensor_locations(weights: Path) -> dict[str, tuple[int, int]]:
    """Return offset, from the start of the file, and length in bytes of every tensor in a safetensors file."""
    with weights.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size))
    start = 8 + size
    return {
        name: (start + entry["data_offsets"][0], entry["data_offsets"][1] - entry["data_offsets"][0])
        for name, entry in header.items()
        if name != "__metadata__"
    }
