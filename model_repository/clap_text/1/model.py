"""Runs the bundle's graph of this model; see `foley_server.backend.network_model`."""

from foley_server.backend.network_model import TritonPythonModel

__all__ = ["TritonPythonModel"]
