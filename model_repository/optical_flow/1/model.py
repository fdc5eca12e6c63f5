"""Optical flow: the bundle's network, or OpenCV's DIS if the manifest selects it."""

import json

from foley.manifest import DisFlowConfig, Manifest
from foley_server.backend.dis_model import TritonPythonModel as DisModel
from foley_server.backend.network_model import TritonPythonModel as NetworkModel


class TritonPythonModel:
    """Delegates to the network model or to the DIS model, depending on the bundle."""

    def initialize(self, args):
        """Load the model that the manifest selects."""
        parameters = json.loads(args["model_config"])["parameters"]
        config = Manifest.model_validate_json(parameters["manifest"]["string_value"]).optical_flow
        self.model = DisModel() if isinstance(config, DisFlowConfig) else NetworkModel()
        self.model.initialize(args)

    def execute(self, requests):
        """Return one response per request, in order."""
        return self.model.execute(requests)
