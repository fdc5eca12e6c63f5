"""Runs the two stages of Video-Foley on a Triton server over gRPC."""

from foley import __version__ as __version__
