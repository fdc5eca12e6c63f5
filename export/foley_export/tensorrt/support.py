"""Checks a graph against the support matrix that TensorRT publishes.

Source: onnx/onnx-tensorrt, docs/operators.md, in the edition for TensorRT 10.15, the newest available when this was
written; release 11 removed weak typing and refers to the same document. Operators irrelevant to these networks are left
out.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import onnx_ir as ir
import onnx_ir.passes.common as passes

OPSETS = range(9, 25)

_T = ir.DataType
_FLOATS = frozenset({_T.FLOAT, _T.FLOAT16, _T.BFLOAT16})
_NUMBERS = _FLOATS | {_T.INT32, _T.INT64}
_ALL = _NUMBERS | {_T.BOOL}
_CASTS = _ALL | {_T.UINT8}  # uint8 only for network inputs and outputs, and for casts


def _of(types: frozenset[ir.DataType], names: str) -> dict[str, frozenset[ir.DataType]]:
    return dict.fromkeys(names.split(), types)


SUPPORTED: Mapping[str, frozenset[ir.DataType]] = {
    **_of(
        _FLOATS,
        "Acos Acosh Asin Asinh Atan Atanh AveragePool BatchNormalization Ceil Celu Clip Conv ConvTranspose Cos Cosh "
        "CumSum Einsum Elu Erf Exp Floor Gemm GlobalAveragePool GlobalMaxPool GroupNormalization HardSigmoid HardSwish "
        "InstanceNormalization LSTM LayerNormalization LeakyRelu Log LogSoftmax MatMul MaxPool PRelu RMSNormalization "
        "Reciprocal Resize Round Selu Sigmoid Sin Sinh Softmax Softplus Softsign Sqrt Tan Tanh",
    ),
    **_of(
        _NUMBERS,
        "Abs Add ArgMax ArgMin DepthToSpace Div Equal Gelu Greater GreaterOrEqual IsNaN Less LessOrEqual Max Mean Min "
        "Mod Mul Neg Pad Pow Range ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin "
        "ReduceProd ReduceSum ReduceSumSquare Relu ScatterElements ScatterND Sign SpaceToDepth Sub Sum TopK",
    ),
    **_of(
        _ALL,
        "Concat Constant ConstantOfShape Expand Flatten Gather GatherElements GatherND Identity OneHot Reshape "
        "ReverseSequence Shape Size Slice Split Squeeze Tile Transpose Trilu Unsqueeze Where",
    ),
    **_of(_CASTS, "Cast CastLike"),
    **_of(frozenset({_T.FLOAT, _T.FLOAT16}), "GridSample"),
    **_of(frozenset({_T.BOOL}), "And Not Or Xor"),
}
"""Operator -> types allowed for its first input, or for its output if it has no input."""

DATA_DEPENDENT = frozenset({"Compress", "NonMaxSuppression", "NonZero", "Unique"})
"""Operators with data-dependent output shapes, which CUDA graphs cannot capture, even if TensorRT supports them."""


def violations(graph: Path) -> list[str]:
    """Return what in the graph TensorRT's support matrix does not list, as messages; empty if all is supported."""
    model = ir.load(graph)
    passes.InlinePass()(model)
    passes.ShapeInferencePass()(model)
    opset = model.graph.opset_imports.get("", 0)
    found = [] if opset in OPSETS else [f"opset {opset} is not supported"]
    return found + [f"{node.op_type} ({node.name}): {problem}" for node in model.graph for problem in _problems(node)]


def _problems(node: ir.Node) -> Iterator[str]:
    if node.domain not in ("", "ai.onnx"):
        yield f"operators of {node.domain} are not supported"
        return
    if node.op_type in DATA_DEPENDENT:
        yield "the shape of its output depends on values"
        return
    types = SUPPORTED.get(node.op_type)
    if types is None:
        yield "the operator is not supported"
        return
    first = node.inputs[1 if node.op_type == "Where" else 0] if node.inputs else node.outputs[0]
    dtype = first.dtype if first is not None else None
    if dtype is None:
        yield "its type is unknown"
    elif dtype not in types:
        yield f"{dtype.name} is not supported"
    for restriction in RESTRICTIONS.get(node.op_type, ()):
        if problem := restriction(node):
            yield problem


Restriction = Callable[[ir.Node], str | None]


def _constant(index: int, name: str) -> Restriction:
    def check(node: ir.Node) -> str | None:
        value = node.inputs[index] if len(node.inputs) > index else None
        known = value is None or ir.convenience.get_const_tensor(value) is not None
        return None if known else f"`{name}` must be known when the engine is built"

    return check


def _attribute(name: str, allowed: Callable[[object], bool], rule: str) -> Restriction:
    def check(node: ir.Node) -> str | None:
        attribute = node.attributes.get(name)
        return None if attribute is None or allowed(attribute.value) else f"`{name}` must be {rule}"

    return check


def _outputs(most: int) -> Restriction:
    def check(node: ir.Node) -> str | None:
        used = [output for output in node.outputs[most:] if output.name and (output.uses() or output.is_graph_output())]
        return f"only the first {most} outputs are supported" if used else None

    return check


def _rank(node: ir.Node) -> str | None:
    value = node.inputs[0]
    rank = len(value.shape) if value is not None and value.shape is not None else None
    return None if rank in (4, 5) else f"only rank 4 and 5 are supported, not {rank}"


_NO_DILATION = _attribute("dilations", lambda value: all(one == 1 for one in value), "all ones")  # type: ignore[attr-defined]
_RESIZES = ("half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn", "asymmetric", "align_corners")

RESTRICTIONS: Mapping[str, tuple[Restriction, ...]] = {
    **dict.fromkeys((name for name in SUPPORTED if name.startswith("Reduce")), (_constant(1, "axes"),)),
    **dict.fromkeys(("Squeeze", "Unsqueeze"), (_constant(1, "axes"),)),
    "AveragePool": (_rank, _NO_DILATION),
    "MaxPool": (_rank, _NO_DILATION, _outputs(1)),
    "CumSum": (_constant(1, "axis"),),
    "OneHot": (_constant(1, "depth"),),
    "LayerNormalization": (_outputs(1),),
    "LSTM": (
        _attribute("layout", lambda value: value == 0, "0"),
        _attribute("input_forget", lambda value: value == 0, "0"),
    ),
    "Resize": (
        _attribute("mode", lambda value: value in ("nearest", "linear"), "nearest or linear"),
        _attribute("coordinate_transformation_mode", lambda value: value in _RESIZES, f"one of {', '.join(_RESIZES)}"),
        _attribute("antialias", lambda value: value == 0, "0"),
        _attribute("keep_aspect_ratio_policy", lambda value: value == "stretch", "stretch"),
    ),
    "ScatterND": (_attribute("reduction", lambda value: value == "none", "none"),),
    "TopK": (_attribute("sorted", lambda value: value == 1, "1"),),
}
