"""The Python-backend model that runs one of the bundle's graphs with ONNX Runtime (target `cpu`).

Every network's `model.py` imports this class. It only works inside Triton's Python backend.
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
from foley_server.session import open_session

ONNX_ERRORS = (InvalidArgument, RuntimeException, Fail)


class TritonPythonModel:
    """Runs one ONNX session; requests of equal shape and wishes that arrive together are one batch."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the graph of the model that this instance serves."""
        parameters = {
            key: value["string_value"] for key, value in json.loads(args["model_config"])["parameters"].items()
        }
        manifest = Manifest.model_validate_json(parameters["manifest"])
        self.stage: Stage = stages(manifest)[args["model_name"]]
        graph = Path(parameters["bundle"]) / graph_file(self.stage.name)
        self.session = open_session(graph)

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response a request, in order. Triton hands over a list; stacking it is up to the model."""
        calls = [self._read(request) for request in requests]
        if not self.stage.max_batch:
            return [self._answer(call) for call in calls]
        responses: list[Any] = []
        for _, group in groupby(calls, key=lambda call: (call.outputs, call.row_shapes)):
            members = list(group)
            responses.extend([self._answer(members[0])] if len(members) == 1 else self._answer_batch(members))
        return responses

    def _read(self, request: Any) -> "Call":
        asked = set(request.requested_output_names())
        return Call(
            {t.name: pb_utils.get_input_tensor_by_name(request, t.name).as_numpy() for t in self.stage.inputs},
            [t.name for t in self.stage.outputs if t.name in asked],
        )

    def _answer_batch(self, calls: list["Call"]) -> list[Any]:
        """Requests of equal shape that want the same: one run."""
        stacked = {name: np.concatenate([call.inputs[name] for call in calls]) for name in calls[0].inputs}
        try:
            outputs = self.session.run(calls[0].outputs, stacked)
        except ONNX_ERRORS:  # one request's values are to blame: it must not fail those it shares the batch with
            return [self._answer(call) for call in calls]
        ends = np.cumsum([call.rows for call in calls])
        pieces = [[output[end - call.rows : end] for output in outputs] for call, end in zip(calls, ends, strict=True)]
        return [_respond(call, piece) for call, piece in zip(calls, pieces, strict=True)]

    def _answer(self, call: "Call") -> Any:
        """One request by itself: its outputs, or what is wrong with its inputs."""
        try:
            return _respond(call, self.session.run(call.outputs, call.inputs))
        except ONNX_ERRORS as error:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG))


@dataclass(frozen=True)
class Call:
    """What one request brings and wants: arrays by name, and the names of outputs, in the contract's order."""

    inputs: dict[str, np.ndarray]
    outputs: list[str]

    @property
    def rows(self) -> int:
        """The size of its batch."""
        return len(next(iter(self.inputs.values())))

    @property
    def row_shapes(self) -> list[tuple[int, ...]]:
        """The shapes of its inputs without the batch."""
        return [array.shape[1:] for array in self.inputs.values()]


def _respond(call: Call, outputs: list[np.ndarray]) -> Any:
    named = zip(call.outputs, outputs, strict=True)
    return pb_utils.InferenceResponse([pb_utils.Tensor(name, np.ascontiguousarray(array)) for name, array in named])
