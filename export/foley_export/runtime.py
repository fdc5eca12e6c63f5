"""ONNX Runtime with telemetry disabled, which must happen before it is imported."""

import os
from pathlib import Path

import numpy as np

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime


class Graph:
    """Runs an ONNX graph on the CPU: NumPy arrays in, arrays out, in the order of the stage's tensors."""

    def __init__(self, path: Path) -> None:
        self._session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        self.inputs = [value.name for value in self._session.get_inputs()]
        self.outputs = [value.name for value in self._session.get_outputs()]

    def __call__(self, *inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        """Run the graph; inputs and outputs are in the order of the stage's tensors."""
        return tuple(self._session.run(None, dict(zip(self.inputs, inputs, strict=True))))
