"""Makes bundles from weights, and ONNX graphs from bundles. Needs torch."""

from foley import __version__ as __version__
