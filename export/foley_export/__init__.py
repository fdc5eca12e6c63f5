"""Makes bundles from weights, and ONNX graphs from bundles. Needs torch."""
