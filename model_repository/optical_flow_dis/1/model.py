"""Optical flow with OpenCV's DIS; see `foley_server.backend.dis_model`."""

from foley_server.backend.dis_model import TritonPythonModel

__all__ = ["TritonPythonModel"]
