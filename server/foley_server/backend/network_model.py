"""Python-backend model that runs one of the bundle's graphs with ONNX Runtime (target `cpu`).

Every network's `model.py` imports this class. Works only inside Triton's Python backend.
"""

import json
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, RuntimeException

from foley.bundle import graph_file
from foley.manifest import Manifest
from foley.stages import Stage, stages
from foley_server.backend.session import open_session

ONNX_ERRORS = (InvalidArgument, RuntimeException, Fail)


class TritonPythonModel:
    """Runs one ONNX session; batches requests of a call that have the same row shapes and requested outputs."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the graph of the model `args["model_name"]`."""
        parameters = {
            key: value["string_value"] for key, value in json.loads(args["model_config"])["parameters"].items()
        }
        manifest = Manifest.model_validate_json(parameters["manifest"])
        self.stage: Stage = stages(manifest)[args["model_name"]]
        graph = Path(parameters["bundle"]) / graph_file(self.stage.name)
        self.session = open_session(graph)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Return one response per request, in order. Triton passes a list; the model stacks the requests itself."""
        calls = [self._parse(request) for request in requests]
        if not self.stage.max_batch:
            return [self._run(call) for call in calls]
        responses: list[Any] = []
        for _, group in groupby(calls, key=lambda call: (call.outputs, call.row_shapes)):
            members = list(group)
            responses.extend([self._run(members[0])] if len(members) == 1 else self._run_batch(members))
        return responses

    def _parse(self, request: Any) -> "Call":
        requested = set(request.requested_output_names())
        return Call(
            {t.name: pb_utils.get_input_tensor_by_name(request, t.name).as_numpy() for t in self.stage.inputs},
            [t.name for t in self.stage.outputs if t.name in requested],
        )

    def _run_batch(self, calls: list["Call"]) -> list[Any]:
        """Run requests with the same row shapes and requested outputs as one batch."""
        stacked = {name: np.concatenate([call.inputs[name] for call in calls]) for name in calls[0].inputs}
        try:
            outputs = self.session.run(calls[0].outputs, stacked)
        except ONNX_ERRORS:  # run one by one, so that invalid values of one request do not fail the others
            return [self._run(call) for call in calls]
        ends = np.cumsum([call.rows for call in calls])
        pieces = [[output[end - call.rows : end] for output in outputs] for call, end in zip(calls, ends, strict=True)]
        return [_respond(call, piece) for call, piece in zip(calls, pieces, strict=True)]

    def _run(self, call: "Call") -> Any:
        """Run one request; ONNX Runtime errors become an INVALID_ARG response."""
        try:
            return _respond(call, self.session.run(call.outputs, call.inputs))
        except ONNX_ERRORS as error:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG))


@dataclass(frozen=True)
class Call:
    """One request.

    Attributes:
        inputs: Input arrays by name.
        outputs: Names of the requested outputs, in the order of the stage's contract.
    """

    inputs: dict[str, np.ndarray]
    outputs: list[str]

    @property
    def rows(self) -> int:
        """Batch size of the request."""
        return len(next(iter(self.inputs.values())))

    @property
    def row_shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the inputs without the batch dimension."""
        return [array.shape[1:] for array in self.inputs.values()]


def _respond(call: Call, outputs: list[np.ndarray]) -> Any:
    named = zip(call.outputs, outputs, strict=True)
    return pb_utils.InferenceResponse([pb_utils.Tensor(name, np.ascontiguousarray(array)) for name, array in named])
