"""What half precision does to a network's answers, measured on a processor.

Processors have few kernels for half precision: ONNX Runtime computes in float32 in their place, and does not round in
between. Here every value that a graph has in half precision is computed in float32 and then rounded, as tensor cores
do it, and the largest of them is told: float16 ends at 65,504.
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
from foley_export.precision import MOVERS
from foley_export.runtime import Graph

LARGEST = {
    ir.DataType.FLOAT16: float(np.finfo(np.float16).max),
    ir.DataType.BFLOAT16: float(ml_dtypes.finfo(ml_dtypes.bfloat16).max),
}
_PEAK = "peak"


@dataclass(frozen=True)
class HalfError:
    """How far a graph in half precision is from the one in float32.

    Attributes:
        relative: of every output, the L2 norm of the difference over that of the answer.
        peak: the largest magnitude among the values in half precision, 0 where none is.
        headroom: the largest number of the type over `peak`; below 1 something overflowed.
    """

    relative: Mapping[str, float]
    peak: float
    headroom: float


class Rounded:
    """The graph at `path`, in half precision, with every value rounded."""

    def __init__(self, path: Path) -> None:
        model = ir.load(path)
        self._largest = min(_round(model), default=math.inf)
        # beside the weights that it points into
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".rounded-", suffix=".onnx") as file:
            ir.save(model, file.name)
            self._graph = Graph(Path(file.name))

    def error(self, inputs: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> HalfError:
        """Compare with what the graph in float32 answers to `inputs`; both in the order of the contract."""
        *found, peak = self._graph(*inputs)
        pairs = zip(self._graph.outputs, found, expected, strict=False)  # the last output is the peak
        return HalfError(
            {name: relative_l2(one, other) for name, one, other in pairs},
            float(peak),
            self._largest / float(peak) if peak else math.inf,
        )


def _round(model: ir.Model) -> set[float]:
    """Compute in float32 what `model` has in half precision, and round it; the output "peak" is new.

    Returns the largest numbers of the types that were met.
    """
    graph = model.graph
    computed = [value for node in graph for value in node.outputs]
    halves = [value for value in (*graph.initializers.values(), *computed) if value.dtype in LARGEST]
    types = {value.dtype for value in halves}
    peaks = []
    for value in halves:
        producer, uses, half = value.producer(), value.uses(), value.dtype
        tape = ir.tape.Tape()
        if producer is None or producer.op_type == "Constant":
            rounded = value
        else:
            value.dtype = ir.DataType.FLOAT
            if producer.op_type == "Cast":
                producer.attributes["to"] = ir.AttrInt64("to", ir.DataType.FLOAT)
            rounded = tape.op("Cast", [value], {"to": half})
            if producer.op_type not in MOVERS:
                peaks.append(tape.op("ReduceMax", [tape.op("Abs", [value])], {"keepdims": 0}))
        back = tape.op("Cast", [rounded], {"to": ir.DataType.FLOAT})
        if producer is None:
            graph.insert_before(graph[0], tape.nodes)
        else:
            graph.insert_after(producer, tape.nodes)
        for user, index in uses:
            user.replace_input_with(index, back)
    highest = ir.node("Max", peaks) if peaks else ir.node("Constant", [], {"value_float": 0.0})
    graph.append(highest)
    peak = highest.outputs[0]
    peak.name, peak.type, peak.shape = _PEAK, ir.TensorType(ir.DataType.FLOAT), ir.Shape(())
    graph.outputs.append(peak)
    return {LARGEST[half] for half in types if half is not None}
