"""Multi-head attention as a single graph node with a fallback in standard operators.

ONNX Runtime has a kernel for `com.microsoft::MultiHeadAttention` that does not materialise the full score matrix. A
model-local function of the same name defines it in standard operators, for runtimes without that kernel.
"""

from typing import Any

import onnx_ir as ir
import torch
from onnxscript import opset20, script
from onnxscript.values import Opset
from torch import Tensor
from torch.nn import functional

_CONTRIB_OPS = Opset("com.microsoft", 1)
op: Any = opset20


def attention(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Return softmax(query @ key^T / sqrt(head width)) @ value, computed per head.

    Args:
        query: [batch, tokens, heads * head width].
        key: Like `query`.
        value: Like `query`.
        heads: Number of heads.
    """
    if torch.onnx.is_in_onnx_export():
        return torch.onnx.ops.symbolic(
            f"{_CONTRIB_OPS.domain}::{MultiHeadAttention.name}",
            (query, key, value),
            {"num_heads": heads},
            dtype=query.dtype,
            shape=query.shape,
            version=_CONTRIB_OPS.version,
        )
    split_heads = (tensor.unflatten(2, (heads, -1)).transpose(1, 2) for tensor in (query, key, value))
    return functional.scaled_dot_product_attention(*split_heads).transpose(1, 2).flatten(2)


@script(_CONTRIB_OPS, default_opset=op)
def MultiHeadAttention(query, key, value, num_heads: int):
    """Same computation as `attention`."""
    heads = op.Reshape(op.Constant(value_int=num_heads), op.Constant(value_ints=[1]))
    head_shape = op.Concat(op.Constant(value_ints=[0, 0]), heads, op.Constant(value_ints=[-1]), axis=0)
    queries = op.Transpose(op.Reshape(query, head_shape), perm=[0, 2, 1, 3])
    keys = op.Transpose(op.Reshape(key, head_shape), perm=[0, 2, 3, 1])
    values = op.Transpose(op.Reshape(value, head_shape), perm=[0, 2, 1, 3])
    width = op.Cast(op.Shape(queries, start=3), to=1)
    scores = op.MatMul(queries / op.CastLike(op.Sqrt(width), queries), keys)
    weights = op.CastLike(op.Softmax(op.Cast(scores, to=1), axis=-1), values)  # float32 softmax for any input type
    mixed = op.Transpose(op.MatMul(weights, values), perm=[0, 2, 1, 3])
    return op.Reshape(mixed, op.Constant(value_ints=[0, 0, -1]))


def add_function(model: ir.Model) -> None:
    """Add the function's definition to `model` if the graph contains the node."""
    if any(node.domain == _CONTRIB_OPS.domain for node in model.graph):
        function = ir.serde.deserialize_function(MultiHeadAttention.to_function_proto())
        model.functions[function.identifier()] = function
