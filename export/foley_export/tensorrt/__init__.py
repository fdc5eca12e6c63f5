"""ONNX graphs to TensorRT engines; needs TensorRT only to build them."""
