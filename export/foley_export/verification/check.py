"""Checks of one module: fill it with seeded weights, run it and compare the results with its vectors."""

import gc
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch

from foley.bundle import Half
from foley.errors import FoleyError
from foley_export.networks.network import Network, OfficialModule
from foley_export.rounding import Rounded
from foley_export.runtime import Graph
from foley_export.verification.comparison import TOLERANCE, Comparison, Engine, Result, compare
from foley_export.verification.graph import export_graph
from foley_export.verification.vectors import Vectors
from foley_export.weights import fill

Comparisons: TypeAlias = Iterator[Comparison]
Forward: TypeAlias = Callable[..., tuple[np.ndarray, ...]]
"""A network's `forward` on NumPy arrays, run by torch or by ONNX Runtime."""


class Check(ABC):
    """One unit of work of `foley-export verify`.

    Attributes:
        module: Name of the checked module in the report.
    """

    module: str

    @abstractmethod
    def run(self, vectors: Vectors, salt: str = "", onnx: bool = False, half: Half | None = None) -> Iterator[Result]:
        """Run every comparison. A comparison that cannot be made yields a failed result.

        Args:
            vectors: The golden vectors.
            salt: Salt of the seeded weights.
            onnx: Also check the exported graphs.
            half: Also check the graphs in this precision, against those in float32.

        Yields:
            One result per comparison.
        """


@dataclass(frozen=True)
class TableCheck(Check):
    """Checks without a network."""

    module: str
    comparisons: tuple[Callable[[Vectors], Comparisons], ...]
    engine: Engine = "numpy"

    def run(self, vectors: Vectors, salt: str = "", onnx: bool = False, half: Half | None = None) -> Iterator[Result]:
        """Run every comparison; see `Check.run`."""
        for compared in self.comparisons:
            yield from _results(self.module, self.engine, compared, vectors)


@dataclass(frozen=True)
class NetworkCheck(Check):
    """Checks of one network at the official size.

    Attributes:
        outputs: Comparisons of the outputs of `forward`, also run on the exported graph.
        intermediates: Comparisons of intermediate values, available from the torch module only.
    """

    module: str
    build: Callable[[], OfficialModule]
    outputs: tuple[Callable[[Forward, Vectors], Comparisons], ...] = ()
    intermediates: tuple[Callable[[Any, Vectors], Comparisons], ...] = ()

    @property
    def exported(self) -> bool:
        """Whether the network is exported and its graph can be checked."""
        return bool(self.outputs)

    def run(self, vectors: Vectors, salt: str = "", onnx: bool = False, half: Half | None = None) -> Iterator[Result]:
        """Run every comparison; see `Check.run`."""
        network = fill(self.build(), salt)
        for compared in self.intermediates:
            yield from _results(self.module, "torch", compared, network, vectors)
        for compared in self.outputs:
            yield from _results(self.module, "torch", compared, _arrays_through(network), vectors)
        if (onnx or half) and self.exported:
            assert isinstance(network, Network)
            with tempfile.TemporaryDirectory(prefix="foley-verify-") as folder:
                try:
                    single = export_graph(network, Path(folder))
                    halved = export_graph(network, Path(folder), half) if half else None
                    del network
                    gc.collect()  # the exporter leaves reference cycles that keep the weights alive
                    recorded = _RecordedGraph(Graph(single))
                    for compared in self.outputs:
                        yield from _results(self.module, "onnx", compared, recorded, vectors)
                    if half and halved:
                        yield from _half_results(self.module, half, Rounded(halved), recorded)
                except Exception as error:  # from the exporter, from ONNX Runtime, or a full disk
                    yield _failure(self.module, "graph", "onnx", error)


class _RecordedGraph:
    """Records the inputs and outputs of every call of a graph."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self.calls: list[tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]] = []

    def __call__(self, *inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        outputs = self._graph(*inputs)
        self.calls.append((inputs, outputs))
        return outputs


def _half_results(module: str, engine: Half, rounded: Rounded, recorded: _RecordedGraph) -> Iterator[Result]:
    """Compare half precision with float32 on the recorded inputs: relative error of every output, and overflow."""
    for inputs, outputs in recorded.calls:
        error = rounded.error(inputs, outputs)
        for name, relative in error.relative.items():
            allowed = TOLERANCE[engine]
            yield Result(module, name, engine, relative <= allowed, relative=relative, tolerance=f"{allowed:.0e}")
        fits = error.headroom > 1
        yield Result(module, f"largest value {error.peak:.3g}", engine, fits, problem="" if fits else "it overflows")


def _arrays_through(network: torch.nn.Module) -> Forward:
    def forward(*inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        outputs = network(*(torch.from_numpy(np.ascontiguousarray(array)) for array in inputs))
        return tuple(tensor.numpy() for tensor in (outputs if isinstance(outputs, tuple) else (outputs,)))

    return forward


def _results(module: str, engine: Engine, compared: Callable[..., Comparisons], *arguments: Any) -> list[Result]:
    results: list[Result] = []
    try:
        with torch.inference_mode():
            for comparison in compared(*arguments):
                results.append(compare(module, engine, comparison))
    except Exception as error:  # a vector of unexpected shape or dtype can fail anywhere; continue with the others
        results.append(_failure(module, compared.__name__.strip("_").replace("_", " "), engine, error))
    return results


def _failure(module: str, what: str, engine: Engine, error: Exception) -> Result:
    first_line = str(error).partition("\n")[0]
    problem = first_line if isinstance(error, FoleyError) else f"failed with {type(error).__name__}: {first_line}"
    return Result(module, what, engine, passed=False, problem=problem)
