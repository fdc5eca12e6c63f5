"""Text -> token ids, with the tokenizer that the bundle carries."""

import json
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils
from tokenizers import Tokenizer

from foley.bundle import TOKENIZER


class TritonPythonModel:
    """Pads the texts of a request to the longest; the tokenizer itself truncates to the network's limit."""

    def initialize(self, args):
        parameters = json.loads(args["model_config"])["parameters"]
        self.tokenizer = Tokenizer.from_file(str(Path(parameters["bundle"]["string_value"]) / TOKENIZER))

    def execute(self, requests):
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
