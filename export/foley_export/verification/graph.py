"""Exports a network to an ONNX graph the way `foley-export onnx` does."""

from pathlib import Path

from foley.bundle import Precision
from foley_export.make import save_weights
from foley_export.networks.network import Network
from foley_export.onnx_export import export


def export_graph(network: Network, folder: Path, precision: Precision = "fp32") -> Path:
    """Write the weights and the graph of `network` to `folder` and return the graph's path."""
    weights = folder / f"{network.stage_name}.safetensors"
    graph = folder / f"{network.stage_name}.{precision}.onnx"
    save_weights(network, weights)
    export(network, weights, graph, precision)
    return graph
