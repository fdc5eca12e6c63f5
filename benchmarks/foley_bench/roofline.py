"""The roofline bound: the time that a network's arithmetic takes at the machine's best matrix rate."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from onnx import TensorProto, helper
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from foley_bench.measurement import measure

MATRIX_SIZES = (1024, 2048)
ROUNDS, LIMIT_S = 40, 2.0  # of products of one size


def count_flop(call: Callable[[], object]) -> int:
    """Count the floating-point operations of `call` in matrix products and convolutions."""
    aten = torch.ops.aten
    with FlopCounterMode(
        display=False,
        custom_mapping={  # the two that PyTorch computes in one operator on CPU and does not count
            aten._scaled_dot_product_flash_attention_for_cpu: _attention_flop,
            aten.mkldnn_rnn_layer: _lstm_flop,
        },
    ) as counter:
        call()
    return counter.get_total_flops()


def matrix_rates() -> Mapping[str, float]:
    """Return the best rate of each library in large square float32 matrix products, in FLOP/s.

    The libraries differ by a factor of two on some processors, so a bound from one of them alone can be too high.
    """
    rates: dict[str, float] = {}
    for size in MATRIX_SIZES:
        for library, timing in measure(_products(size), ROUNDS, LIMIT_S).items():
            rates[library] = max(rates.get(library, 0.0), 2.0 * size**3 / min(timing.seconds))
    return rates


def _products(size: int) -> Mapping[str, Callable[[], object]]:
    a, b = np.random.default_rng(0).standard_normal((2, size, size), np.float32)
    product = torch.empty(size, size)
    session = _matmul_session()
    return {
        "PyTorch": lambda: torch.mm(torch.from_numpy(a), torch.from_numpy(b), out=product),
        "ONNX Runtime": lambda: session.run(None, {"a": a, "b": b}),
    }


def _matmul_session() -> ort.InferenceSession:
    a, b, product = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, None]) for name in ("a", "b", "product")
    )
    graph = helper.make_graph([helper.make_node("MatMul", ["a", "b"], ["product"])], "product", [a, b], [product])
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)])
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def _attention_flop(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _lstm_flop(inputs: Sequence[int], of_input: Sequence[int], of_state: Sequence[int], *_: Any, **__: Any) -> int:
    """Count one direction of a layer, given the shapes of its input [..., C] and of its two weight matrices."""
    return 2 * math.prod(inputs[:-1]) * (math.prod(of_input) + math.prod(of_state))
