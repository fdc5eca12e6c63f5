"""A network's ONNX graph, exported as `foley-export onnx` does it and run by ONNX Runtime."""

import os
from pathlib import Path

import numpy as np

from foley_export.make import save_weights
from foley_export.networks.network import Network
from foley_export.onnx_export import export

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # must be set before the import

import onnxruntime


def export_graph(network: Network, folder: Path) -> Path:
    """Write weights and graph of `network` to `folder`; return the graph's path."""
    weights, graph = folder / f"{network.stage_name}.safetensors", folder / f"{network.stage_name}.onnx"
    save_weights(network, weights)
    export(network, weights, graph)
    return graph


class Graph:
    """Calls a graph like the module that it was made from: arrays in, arrays out, in the order of the contract."""

    def __init__(self, path: Path) -> None:
        self._session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        self._inputs = [value.name for value in self._session.get_inputs()]

    def __call__(self, *inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        return tuple(self._session.run(None, dict(zip(self._inputs, inputs, strict=True))))
