"""Stands for Triton's ONNX Runtime and TensorRT backends where there is no GPU: the same files, on the processor.

Triton calls it as a Python-based backend. A `model.plan` in the tests holds the path of the graph that an engine would
have been built from.
"""

import json
from pathlib import Path

import triton_python_backend_utils as pb_utils

from foley_server.backend.session import open_session


class TritonPythonModel:
    """Runs what lies in the model's folder under the name that its configuration says."""

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
