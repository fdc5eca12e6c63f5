"""The two stages of Video-Foley, driven on a Triton server over gRPC."""

from foley import __version__ as __version__
