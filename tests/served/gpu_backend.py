"""Replaces Triton's ONNX Runtime and TensorRT backends on machines without a GPU: runs the same files on the CPU.

Triton calls it as a Python-based backend. In tests, a `model.plan` contains the path of the graph that the engine would
be built from.
"""

import json
from pathlib import Path

import triton_python_backend_utils as pb_utils

from foley_server.backend.session import open_session


class TritonPythonModel:
    """Runs the file in the model's folder that `default_model_filename` names."""

    def initialize(self, args):
        config = json.loads(args["model_config"])
        file = Path(args["model_repository"]) / args["model_version"] / config["default_model_filename"]
        self.session = open_session(Path(file.read_text()) if file.suffix == ".plan" else file)
        self.outputs = [output["name"] for output in config["output"]]

    def execute(self, requests):
        responses = []
        for request in requests:
            inputs = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
            arrays = self.session.run(self.outputs, inputs)
            tensors = [pb_utils.Tensor(name, array) for name, array in zip(self.outputs, arrays, strict=True)]
            responses.append(pb_utils.InferenceResponse(tensors))
        return responses
