"""Tokenizes texts with the bundle's tokenizer."""

import json
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils
from tokenizers import Tokenizer

from foley.bundle import TOKENIZER


class TritonPythonModel:
    """Tokenizes the texts of each request.

    The tokenizer pads them to the longest text and truncates them to the network's maximum length.
    """

    def initialize(self, args):
        """Load the tokenizer of the bundle."""
        parameters = json.loads(args["model_config"])["parameters"]
        self.tokenizer = Tokenizer.from_file(str(Path(parameters["bundle"]["string_value"]) / TOKENIZER))

    def execute(self, requests):
        """Return one response per request, in order."""
        return [self._tokenize(request) for request in requests]

    def _tokenize(self, request):
        texts = pb_utils.get_input_tensor_by_name(request, "text").as_numpy().ravel()
        try:
            encodings = self.tokenizer.encode_batch([text.decode() for text in texts])
        except UnicodeDecodeError:
            return pb_utils.InferenceResponse(
                error=pb_utils.TritonError("text is not UTF-8", pb_utils.TritonError.INVALID_ARG)
            )
        return pb_utils.InferenceResponse(
            [
                pb_utils.Tensor("input_ids", np.array([e.ids for e in encodings], np.int64)),
                pb_utils.Tensor("attention_mask", np.array([e.attention_mask for e in encodings], np.int64)),
            ]
        )
