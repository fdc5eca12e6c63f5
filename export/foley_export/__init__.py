"""Creates bundles from weights, and ONNX graphs from bundles. Requires torch."""

from foley import __version__ as __version__
