"""Optical flow: the bundle's network (see `foley_server.network_model`), or OpenCV's DIS where its manifest says so."""

import json

import triton_python_backend_utils as pb_utils

from foley.dis_flow import DisFlow
from foley.manifest import DisFlowConfig, Manifest
from foley_server.network_model import TritonPythonModel as NetworkModel


class TritonPythonModel:
    """Hands its requests to the one of the two that the bundle has."""

    def initialize(self, args):
        parameters = json.loads(args["model_config"])["parameters"]
        config = Manifest.model_validate_json(parameters["manifest"]["string_value"]).optical_flow
        if isinstance(config, DisFlowConfig):
            self.model = DisModel(config)
        else:
            self.model = NetworkModel()
            self.model.initialize(args)

    def execute(self, requests):
        return self.model.execute(requests)


class DisModel:
    """Frames in, flow out."""

    def __init__(self, config):
        self.dis = DisFlow(config)

    def execute(self, requests):
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        frames = pb_utils.get_input_tensor_by_name(request, "frames").as_numpy()
        return pb_utils.InferenceResponse([pb_utils.Tensor("flow", self.dis.flow(frames))])
