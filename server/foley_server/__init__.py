"""Serves Video-Foley: model repository, Triton process, public gRPC API and studio."""

from foley import __version__ as __version__
