"""A network's ONNX graph, exported as `foley-export onnx` does it."""

from pathlib import Path

from foley.bundle import Precision
from foley_export.make import save_weights
from foley_export.networks.network import Network
from foley_export.onnx_export import export


def export_graph(network: Network, folder: Path, precision: Precision = "fp32") -> Path:
    """Write weights and graph of `network` to `folder`; return the graph's path."""
    weights = folder / f"{network.stage_name}.safetensors"
    graph = folder / f"{network.stage_name}.{precision}.onnx"
    save_weights(network, weights)
    export(network, weights, graph, precision)
    return graph
