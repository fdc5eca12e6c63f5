"""Optical flow: the bundle's network, or OpenCV's DIS where its manifest says so."""

import json

from foley.manifest import DisFlowConfig, Manifest
from foley_server.dis_model import TritonPythonModel as DisModel
from foley_server.network_model import TritonPythonModel as NetworkModel


class TritonPythonModel:
    """Hands its requests to the one of the two that the bundle has."""

    def initialize(self, args):
        parameters = json.loads(args["model_config"])["parameters"]
        config = Manifest.model_validate_json(parameters["manifest"]["string_value"]).optical_flow
        self.model = DisModel() if isinstance(config, DisFlowConfig) else NetworkModel()
        self.model.initialize(args)

    def execute(self, requests):
        return self.model.execute(requests)
