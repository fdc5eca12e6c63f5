"""Runs the diffusion loop on the server, with the same `foley.sampler` as the client."""

import numpy as np
import triton_python_backend_utils as pb_utils

from foley.denoising import served_denoiser
from foley.errors import FoleyError, ServerFailure
from foley.sampler import Sampling, sample


class TritonPythonModel:
    """Sends one `step` response per denoising step; the last one also contains the waveform."""

    def execute(self, requests):
        """Run the requests one after the other, sending their responses."""
        for request in requests:
            sender = request.get_response_sender()
            try:
                self._generate(request, sender)
                answer = []
            except FoleyError as error:
                # Errors on a stream have no status, so the message is prefixed with it.
                message = f"{error.grpc_status}: {error}"
                answer = [pb_utils.InferenceResponse(error=pb_utils.TritonError(message))]
            # Triton 24.10 can crash if anything is sent after an error, so the error is sent with the final flag.
            sender.send(*answer, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def _generate(self, request, sender):
        inputs = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        sampling, window = Sampling.decode(inputs["options"][0])
        denoise = served_denoiser(infer, inputs["envelope"], inputs["embedding"], inputs["negative_embedding"])
        for step, latents in enumerate(sample(denoise, sampling, window), start=1):
            if request.is_cancelled():
                return
            sound = None
            if step == sampling.steps:
                sound = infer("latents_to_waveform", ("waveform",), latents=latents[None])["waveform"][0]
            sender.send(event(step, sound))


def event(step, waveform=None):
    """Return the response after `step` steps; only the last one contains the waveform."""
    sound = np.zeros(0, np.float32) if waveform is None else waveform
    return pb_utils.InferenceResponse(
        [pb_utils.Tensor("step", np.array([step], np.int32)), pb_utils.Tensor("waveform", sound)]
    )


def infer(model, outputs, **inputs):
    """Call another served model; return the requested outputs by name."""
    request = pb_utils.InferenceRequest(
        model_name=model,
        requested_output_names=list(outputs),
        inputs=[pb_utils.Tensor(name, array) for name, array in inputs.items()],
        preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU),  # also for models on a GPU
    )
    response = request.exec()
    if response.has_error():
        raise ServerFailure(f"{model}: {response.error().message()}")
    # Copies, because the memory of the tensors is freed with the response.
    return {name: pb_utils.get_output_tensor_by_name(response, name).as_numpy().copy() for name in outputs}
