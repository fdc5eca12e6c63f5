"""Half precision in a graph: which nodes compute in it, and which stay in float32.

TensorRT 11 takes every type from the graph, and ONNX Runtime reads the same file, so the precision is decided here and
nowhere else. Weights stay as they are stored; a `Cast`, which runtimes do while loading, stands between.
"""

import ast
from collections.abc import Collection, Iterator

import onnx_ir as ir
import onnx_ir.passes.common as passes

from foley.bundle import Half

HALF: dict[Half, ir.DataType] = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}

# sums over many values, and what grows or falls fast: range or digits are lost in half precision
NORMALISATIONS = frozenset({"GroupNormalization", "InstanceNormalization", "LayerNormalization", "Softmax"})
SUMS = frozenset({"CumSum", "LSTM", "ReduceL2", "ReduceMean", "ReduceSum"})
STEEP = frozenset({"Cos", "Exp", "Log", "Pow", "Range", "Sin", "Sqrt", "Tanh"})
ISLANDS = NORMALISATIONS | SUMS | STEEP

SHAPES = frozenset({"Expand", "Identity", "Pad", "Reshape", "Resize", "Squeeze", "Transpose", "Unsqueeze"})
PARTS = frozenset({"Concat", "DepthToSpace", "Gather", "GatherElements", "GatherND", "ScatterND", "Slice", "Split"})
MOVERS = SHAPES | PARTS
"""Operators that only move values: in whatever precision these come."""

_OPSET = {ir.DataType.FLOAT16: 20, ir.DataType.BFLOAT16: 22}  # convolutions take bfloat16 from 22 on; else no change
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_SCOPES = "pkg.torch.onnx.name_scopes"  # the modules that a node was called in, outermost first, then its own name


def halve(model: ir.Model, half: ir.DataType, full_precision: Collection[str]) -> None:
    """Let `model` compute in `half`, its inputs and outputs still in float32, but for islands of float32.

    Those are the operators in `ISLANDS`, the modules in `full_precision` (names of torch modules, with all below them),
    and what a network does itself, outside of its modules: guidance, coordinates, correlations, input and output
    ranges. The model needs the exporter's metadata.
    """
    model.graph.opset_imports[""] = _OPSET[half]
    for function in model.functions.values():
        function.opset_imports[""] = _OPSET[half]
    _cast_bytes(model.graph)
    passes.ShapeInferencePass()(model)  # operators that the exporter has put in have no types yet
    _fold_batch_normalization(model.graph)
    casts = _Casts(model.graph)
    for node in list(model.graph):
        floats = list(_float_inputs(node))
        if not floats or node.op_type == "Cast":
            continue
        given = [_dtype(node.inputs[i]) for i in floats]
        if node.op_type == "CastLike":
            wanted = given[-1]
        elif node.op_type in MOVERS:
            wanted = half if half in given[: None if node.op_type == "Concat" else 1] else ir.DataType.FLOAT
        else:
            wanted = ir.DataType.FLOAT if _is_island(node, full_precision) else half
        if node.op_type != "CastLike":
            for i in floats:
                node.replace_input_with(i, casts.to(node.inputs[i], wanted))
        for output in node.outputs:
            if output.dtype == ir.DataType.FLOAT:
                output.dtype = wanted
    for i, output in enumerate(model.graph.outputs):
        if output.dtype == half:
            model.graph.outputs[i] = casts.output(output)


def _float_inputs(node: ir.Node) -> Iterator[int]:
    """Which inputs carry values of the network; the scales of a `Resize` do not."""
    for i, value in enumerate(node.inputs):
        if value is not None and value.dtype in _FLOATS and not (node.op_type == "Resize" and i > 0):
            yield i


def _dtype(value: ir.Value | None) -> ir.DataType:
    assert value is not None
    assert value.dtype is not None
    return value.dtype


def _is_island(node: ir.Node, full_precision: Collection[str]) -> bool:
    modules = _modules(node)
    return node.op_type in ISLANDS or not modules or any(module in full_precision for module in modules)


def _modules(node: ir.Node) -> list[str]:
    """The names of the modules that a node belongs to; none for what the network does itself."""
    scopes: list[str] = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))
    return scopes[1:-1]


class _Casts:
    """The casts of a graph, each value once to a type."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._made: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}

    def to(self, value: ir.Value | None, dtype: ir.DataType) -> ir.Value:
        """`value` in `dtype`: a new cast, unless it is in it already or was cast from it."""
        assert value is not None
        if value.dtype == dtype:
            return value
        producer = value.producer()
        if producer is not None and producer.op_type == "Cast" and _dtype(producer.inputs[0]) == dtype:
            return _given(producer.inputs[0])
        if (value, dtype) not in self._made:
            self._made[value, dtype] = self._cast(value, dtype, f"{value.name}_{dtype.name.lower()}")
        return self._made[value, dtype]

    def output(self, value: ir.Value) -> ir.Value:
        """The graph's output `value` as float32, under its name."""
        name = _named(value)
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


def _cast_bytes(graph: ir.Graph) -> None:
    """Begin with floats: TensorRT takes bytes for inputs, and does nothing with them but cast them."""
    for value in graph.inputs:
        if value.dtype == ir.DataType.UINT8:
            uses = value.uses()
            cast = ir.node("Cast", [value], {"to": ir.DataType.FLOAT})
            graph.insert_before(graph[0], cast)
            cast.outputs[0].dtype = ir.DataType.FLOAT
            for user, index in uses:
                user.replace_input_with(index, cast.outputs[0])
    for node in graph:
        if node.op_type in MOVERS and _given(node.inputs[0]).dtype == ir.DataType.FLOAT:
            for output in node.outputs:
                output.dtype = ir.DataType.FLOAT


def _fold_batch_normalization(graph: ir.Graph) -> None:
    """x * scale + shift, both computed in float32: statistics of unnormalised values need its range.

    Both are constants, so runtimes compute them while loading, and fuse them into the convolution before.
    """
    for node in list(graph):
        if node.op_type != "BatchNormalization":
            continue
        x, weight, bias, mean, variance = map(_given, node.inputs)
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
            output.name = f"{_named(node.outputs[0])}_{i}"
            output.dtype = ir.DataType.INT64 if output is axes else ir.DataType.FLOAT
        for made in tape.nodes[-3], tape.nodes[-1]:
            made.metadata_props.update(node.metadata_props)  # the rest, like what belongs to no module, stays float32
        scaled.shape = result.shape = x.shape
        ir.convenience.replace_nodes_and_values(graph, node, [node], list(tape.nodes), node.outputs, [result])


def _given(value: ir.Value | None) -> ir.Value:
    assert value is not None
    return value


def _named(value: ir.Value) -> str:
    assert value.name is not None
    return value.name
