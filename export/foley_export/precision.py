"""Half precision in a graph: which nodes compute in it, and which stay in float32.

TensorRT 11 builds strongly typed networks and ONNX Runtime reads the same file, so the graph alone decides the
precision. Weights keep their stored type; a `Cast`, which runtimes fold while loading, converts them.
"""

import ast
from collections.abc import Collection, Iterator

import onnx_ir as ir
import onnx_ir.passes.common as passes

from foley.bundle import Half

HALF: dict[Half, ir.DataType] = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}

# reductions over many values, and ops that overflow or lose precision in fp16
NORMALISATION_OPS = frozenset({"GroupNormalization", "InstanceNormalization", "LayerNormalization", "Softmax"})
REDUCTION_OPS = frozenset({"CumSum", "LSTM", "ReduceL2", "ReduceMean", "ReduceSum"})
RANGE_SENSITIVE_OPS = frozenset({"Cos", "Exp", "Log", "Pow", "Range", "Sin", "Sqrt", "Tanh"})
FULL_PRECISION_OPS = NORMALISATION_OPS | REDUCTION_OPS | RANGE_SENSITIVE_OPS

SHAPE_OPS = frozenset({"Expand", "Identity", "Pad", "Reshape", "Resize", "Squeeze", "Transpose", "Unsqueeze"})
INDEXING_OPS = frozenset(
    {"Concat", "DepthToSpace", "Gather", "GatherElements", "GatherND", "ScatterND", "Slice", "Split"}
)
DATA_MOVEMENT_OPS = SHAPE_OPS | INDEXING_OPS
"""Operators that only move values; they keep the precision of their input."""

_OPSET = {ir.DataType.FLOAT16: 20, ir.DataType.BFLOAT16: 22}  # Conv accepts bfloat16 from opset 22 on
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_NAME_SCOPES = "pkg.torch.onnx.name_scopes"  # names of a node's enclosing modules, outermost first, then its own name


def convert_to_half(model: ir.Model, half: ir.DataType, full_precision: Collection[str]) -> None:
    """Convert `model` to compute in `half` with float32 inputs and outputs, except where float32 is needed.

    These stay in float32: the operators in `FULL_PRECISION_OPS`, the modules in `full_precision` (names of torch
    modules, including their submodules), and nodes outside of any submodule: guidance, coordinates, correlations, input
    and output ranges. The model must still have the exporter's metadata.
    """
    model.graph.opset_imports[""] = _OPSET[half]
    for function in model.functions.values():
        function.opset_imports[""] = _OPSET[half]
    _cast_uint8_inputs(model.graph)
    passes.ShapeInferencePass()(model)  # nodes that the exporter inserted have no types yet
    _fold_batch_normalization(model.graph)
    casts = _Casts(model.graph)
    for node in list(model.graph):
        floats = list(_float_inputs(node))
        if not floats or node.op_type == "Cast":
            continue
        dtypes = [_dtype(node.inputs[i]) for i in floats]
        if node.op_type == "CastLike":
            target = dtypes[-1]
        elif node.op_type in DATA_MOVEMENT_OPS:
            target = half if half in dtypes[: None if node.op_type == "Concat" else 1] else ir.DataType.FLOAT
        else:
            target = ir.DataType.FLOAT if _needs_full_precision(node, full_precision) else half
        if node.op_type != "CastLike":
            for i in floats:
                node.replace_input_with(i, casts.to(node.inputs[i], target))
        for output in node.outputs:
            if output.dtype == ir.DataType.FLOAT:
                output.dtype = target
    for i, output in enumerate(model.graph.outputs):
        if output.dtype == half:
            model.graph.outputs[i] = casts.output(output)


def _float_inputs(node: ir.Node) -> Iterator[int]:
    """Yield the indices of inputs with floating-point data; excludes the scales of a `Resize`."""
    for i, value in enumerate(node.inputs):
        if value is not None and value.dtype in _FLOATS and not (node.op_type == "Resize" and i > 0):
            yield i


def _dtype(value: ir.Value | None) -> ir.DataType:
    assert value is not None
    assert value.dtype is not None
    return value.dtype


def _needs_full_precision(node: ir.Node, full_precision: Collection[str]) -> bool:
    modules = _modules(node)
    return node.op_type in FULL_PRECISION_OPS or not modules or any(module in full_precision for module in modules)


def _modules(node: ir.Node) -> list[str]:
    """Return the names of the modules that a node belongs to; empty for nodes of the network's own `forward`."""
    scopes: list[str] = ast.literal_eval(node.metadata_props.get(_NAME_SCOPES, "[]"))
    return scopes[1:-1]


class _Casts:
    """Inserts casts into a graph, at most one per value and type."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._made: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}

    def to(self, value: ir.Value | None, dtype: ir.DataType) -> ir.Value:
        """Return `value` in `dtype`: the value itself, the source of its cast, or a new or existing cast."""
        assert value is not None
        if value.dtype == dtype:
            return value
        producer = value.producer()
        if producer is not None and producer.op_type == "Cast" and _dtype(producer.inputs[0]) == dtype:
            return _required(producer.inputs[0])
        if (value, dtype) not in self._made:
            self._made[value, dtype] = self._cast(value, dtype, f"{value.name}_{dtype.name.lower()}")
        return self._made[value, dtype]

    def output(self, value: ir.Value) -> ir.Value:
        """Return the graph output `value` as float32, under its original name."""
        name = _name(value)
        value.name = f"{name}_{_dtype(value).name.lower()}"
        return self._cast(value, ir.DataType.FLOAT, name)

    def _cast(self, value: ir.Value, dtype: ir.DataType, name: str) -> ir.Value:
        cast = ir.node("Cast", [value], {"to": dtype})
        result = cast.outputs[0]
        result.name, result.dtype, result.shape = name, dtype, value.shape
        producer = value.producer()
        if producer is None:
            self._graph.insert_before(self._graph[0], cast)
        else:
            self._graph.insert_after(producer, cast)
        return result


def _cast_uint8_inputs(graph: ir.Graph) -> None:
    """Cast uint8 inputs to float32 at once, because TensorRT supports no other operator on uint8."""
    for value in graph.inputs:
        if value.dtype == ir.DataType.UINT8:
            uses = value.uses()
            cast = ir.node("Cast", [value], {"to": ir.DataType.FLOAT})
            graph.insert_before(graph[0], cast)
            cast.outputs[0].dtype = ir.DataType.FLOAT
            for user, index in uses:
                user.replace_input_with(index, cast.outputs[0])
    for node in graph:
        if node.op_type in DATA_MOVEMENT_OPS and _required(node.inputs[0]).dtype == ir.DataType.FLOAT:
            for output in node.outputs:
                output.dtype = ir.DataType.FLOAT


def _fold_batch_normalization(graph: ir.Graph) -> None:
    """Replace batch normalisation by x * scale + shift, both computed in float32, whose range the statistics need.

    Both are constants, so runtimes compute them while loading and fuse them into the preceding convolution.
    """
    for node in list(graph):
        if node.op_type != "BatchNormalization":
            continue
        x, weight, bias, mean, variance = map(_required, node.inputs)
        assert x.shape is not None
        tape = ir.tape.Tape()
        axes = tape.op("Constant", [], {"value_ints": list(range(1, len(x.shape) - 1))})
        epsilon = tape.op("Constant", [], {"value_float": node.attributes.get_float("epsilon", 1e-5)})
        scale = tape.op("Div", [weight, tape.op("Sqrt", [tape.op("Add", [variance, epsilon])])])
        shift = tape.op("Sub", [bias, tape.op("Mul", [mean, scale])])
        scaled = tape.op("Mul", [x, tape.op("Unsqueeze", [scale, axes])])
        result = tape.op("Add", [scaled, tape.op("Unsqueeze", [shift, axes])])
        for i, made in enumerate(tape.nodes):
            output = made.outputs[0]
            output.name = f"{_name(node.outputs[0])}_{i}"
            output.dtype = ir.DataType.INT64 if output is axes else ir.DataType.FLOAT
        for made in tape.nodes[-3], tape.nodes[-1]:
            made.metadata_props.update(node.metadata_props)  # the others, without a module, stay in float32
        scaled.shape = result.shape = x.shape
        ir.convenience.replace_nodes_and_values(graph, node, [node], list(tape.nodes), node.outputs, [result])


def _required(value: ir.Value | None) -> ir.Value:
    assert value is not None
    return value


def _name(value: ir.Value) -> str:
    assert value.name is not None
    return value.name
