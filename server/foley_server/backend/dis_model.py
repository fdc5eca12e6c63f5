"""Python-backend model that computes optical flow with OpenCV's DIS.

Works only inside Triton's Python backend.
"""

import json
from typing import Any

import triton_python_backend_utils as pb_utils

from foley.dis_flow import DisFlow
from foley.manifest import DisFlowConfig, Manifest


class TritonPythonModel:
    """Computes flow from frames, with the bundle's DIS preset; the default preset if the bundle uses RAFT."""

    def initialize(self, args: dict[str, str]) -> None:
        """Create the DIS estimator from the bundle's manifest."""
        parameters = json.loads(args["model_config"])["parameters"]
        config = Manifest.model_validate_json(parameters["manifest"]["string_value"]).optical_flow
        self.dis = DisFlow(config if isinstance(config, DisFlowConfig) else DisFlowConfig())

    def execute(self, requests: list[Any]) -> list[Any]:
        """Return one response per request, in order."""
        return [self._run(request) for request in requests]

    def _run(self, request: Any) -> Any:
        frames = pb_utils.get_input_tensor_by_name(request, "frames").as_numpy()
        return pb_utils.InferenceResponse([pb_utils.Tensor("flow", self.dis.flow(frames))])
