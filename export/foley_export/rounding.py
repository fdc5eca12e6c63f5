"""Emulates half precision on a CPU and measures its error.

CPUs have few half-precision kernels: ONNX Runtime falls back to float32 for the others and does not round intermediate
values. Here every value that a graph has in half precision is computed in float32 and then rounded, as tensor cores do,
and the peak magnitude is reported: float16 ends at 65,504.
"""

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir

from foley.metrics import relative_l2
from foley_export.precision import DATA_MOVEMENT_OPS
from foley_export.runtime import Graph

MAX_FINITE = {
    ir.DataType.FLOAT16: float(np.finfo(np.float16).max),
    ir.DataType.BFLOAT16: float(ml_dtypes.finfo(ml_dtypes.bfloat16).max),
}
_PEAK = "peak"


@dataclass(frozen=True)
class HalfError:
    """The error of a graph in half precision against the one in float32.

    Attributes:
        relative: Relative L2 error of every output, by name.
        peak: Peak magnitude of the half-precision values, 0 if there are none.
        headroom: Largest number of the type divided by `peak`; below 1 a value overflowed.
    """

    relative: Mapping[str, float]
    peak: float
    headroom: float


class Rounded:
    """The half-precision graph at `path` with every value rounded."""

    def __init__(self, path: Path) -> None:
        model = ir.load(path)
        self._largest = min(_round(model), default=math.inf)
        # in the same folder, because the graph's external data is relative to it
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".rounded-", suffix=".onnx") as file:
            ir.save(model, file.name)
            self._graph = Graph(Path(file.name))

    def error(self, inputs: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> HalfError:
        """Compare the outputs for `inputs` with `expected`, those of the float32 graph; both in the stage's order."""
        *found, peak = self._graph(*inputs)
        pairs = zip(self._graph.outputs, found, expected, strict=False)  # the last output is the peak
        return HalfError(
            {name: relative_l2(one, other) for name, one, other in pairs},
            float(peak),
            self._largest / float(peak) if peak else math.inf,
        )


def _round(model: ir.Model) -> set[float]:
    """Rewrite `model` to compute half-precision values in float32 and round them; add the output "peak".

    Returns:
        The largest finite numbers of the half-precision types in the model.
    """
    graph = model.graph
    computed = [value for node in graph for value in node.outputs]
    half_values = [value for value in (*graph.initializers.values(), *computed) if value.dtype in MAX_FINITE]
    types = {value.dtype for value in half_values}
    peaks = []
    for value in half_values:
        producer, uses, half = value.producer(), value.uses(), value.dtype
        tape = ir.tape.Tape()
        if producer is None or producer.op_type == "Constant":
            rounded = value
        else:
            value.dtype = ir.DataType.FLOAT
            if producer.op_type == "Cast":
                producer.attributes["to"] = ir.AttrInt64("to", ir.DataType.FLOAT)
            rounded = tape.op("Cast", [value], {"to": half})
            if producer.op_type not in DATA_MOVEMENT_OPS:
                peaks.append(tape.op("ReduceMax", [tape.op("Abs", [value])], {"keepdims": 0}))
        back = tape.op("Cast", [rounded], {"to": ir.DataType.FLOAT})
        if producer is None:
            graph.insert_before(graph[0], tape.nodes)
        else:
            graph.insert_after(producer, tape.nodes)
        for user, index in uses:
            user.replace_input_with(index, back)
    maximum = ir.node("Max", peaks) if peaks else ir.node("Constant", [], {"value_float": 0.0})
    graph.append(maximum)
    peak = maximum.outputs[0]
    peak.name, peak.type, peak.shape = _PEAK, ir.TensorType(ir.DataType.FLOAT), ir.Shape(())
    graph.outputs.append(peak)
    return {MAX_FINITE[half] for half in types if half is not None}
