"""The Python-backend model that finds optical flow with OpenCV's DIS.

It only works inside Triton's Python backend.
"""

import json
from typing import Any

import triton_python_backend_utils as pb_utils

from foley.dis_flow import DisFlow
from foley.manifest import DisFlowConfig, Manifest


class TritonPythonModel:
    """Frames in, flow out; with the preset that the bundle names, the default one where it has RAFT."""

    def initialize(self, args: dict[str, str]) -> None:
        """Make the method for the bundle's manifest."""
        parameters = json.loads(args["model_config"])["parameters"]
        config = Manifest.model_validate_json(parameters["manifest"]["string_value"]).optical_flow
        self.dis = DisFlow(config if isinstance(config, DisFlowConfig) else DisFlowConfig())

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response a request, in order."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        frames = pb_utils.get_input_tensor_by_name(request, "frames").as_numpy()
        return pb_utils.InferenceResponse([pb_utils.Tensor("flow", self.dis.flow(frames))])
