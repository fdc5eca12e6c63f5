"""Optical flow with OpenCV's DIS; see `foley_server.dis_model`."""

from foley_server.dis_model import TritonPythonModel

__all__ = ["TritonPythonModel"]
