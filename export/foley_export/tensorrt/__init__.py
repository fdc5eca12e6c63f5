"""Builds TensorRT engines from ONNX graphs. TensorRT itself is required for building only."""
