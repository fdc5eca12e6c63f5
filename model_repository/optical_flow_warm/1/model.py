"""Runs the bundle's graph of this model; see `foley_server.network_model`."""

from foley_server.network_model import TritonPythonModel

__all__ = ["TritonPythonModel"]
