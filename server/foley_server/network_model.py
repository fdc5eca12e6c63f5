"""The Python-backend model that runs one of the bundle's graphs with ONNX Runtime (target `cpu`).

Every network's `model.py` imports this class. It only works inside Triton's Python backend.
"""

import json
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, RuntimeException

from foley.bundle import graph_file
from foley.manifest import Manifest
from foley.stages import Stage, stages

ONNX_ERRORS = (InvalidArgument, RuntimeException, Fail)


class TritonPythonModel:
    """Runs one ONNX session; requests of equal shape that arrive together are one batch."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the graph of the model that this instance serves."""
        parameters = {
            key: value["string_value"] for key, value in json.loads(args["model_config"])["parameters"].items()
        }
        manifest = Manifest.model_validate_json(parameters["manifest"])
        self.stage: Stage = stages(manifest)[args["model_name"]]
        options = ort.SessionOptions()
        # several sessions share the cores: a pool that spins while it waits takes them from the others
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        graph = Path(parameters["bundle"]) / graph_file(self.stage.name)
        self.session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response a request, in order. Triton hands over a list; stacking it is up to the model."""
        inputs = [
            {t.name: pb_utils.get_input_tensor_by_name(request, t.name).as_numpy() for t in self.stage.inputs}
            for request in requests
        ]
        if not self.stage.max_batch:
            return [self._answer(one) for one in inputs]
        responses: list[Any] = []
        for _, group in groupby(inputs, key=lambda one: [array.shape[1:] for array in one.values()]):
            members = list(group)
            sizes = [len(next(iter(one.values()))) for one in members]
            try:
                outputs = self._run({name: np.concatenate([one[name] for one in members]) for name in members[0]})
            except ONNX_ERRORS:  # one request's values are to blame: it must not fail those it shares the batch with
                responses.extend(self._answer(one) for one in members)
                continue
            for start, size in zip(np.cumsum([0, *sizes[:-1]]), sizes, strict=True):
                responses.append(self._respond([output[start : start + size] for output in outputs]))
        return responses

    def _answer(self, inputs: dict[str, np.ndarray]) -> Any:
        """One request by itself: its outputs, or what is wrong with its inputs."""
        try:
            return self._respond(self._run(inputs))
        except ONNX_ERRORS as error:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG))

    def _run(self, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        return self.session.run([t.name for t in self.stage.outputs], inputs)

    def _respond(self, outputs: list[np.ndarray]) -> Any:
        named = zip(self.stage.outputs, outputs, strict=True)
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor(t.name, np.ascontiguousarray(output)) for t, output in named]
        )
