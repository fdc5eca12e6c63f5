"""The diffusion loop inside the server: the same `foley.sampler` that the client drives."""

import numpy as np
import triton_python_backend_utils as pb_utils

from foley.denoising import served_denoiser
from foley.errors import FoleyError, ServerFailure, SettingError
from foley.sampler import Sampling, sample


class TritonPythonModel:
    """Answers one request with a `step` event a step; the last response also carries the waveform."""

    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            try:
                self._generate(request, sender)
                answer = []
            except FoleyError as error:
                # a stream's errors travel without a status: it goes in front of the message
                message = f"{error.grpc_status}: {error}"
                answer = [pb_utils.InferenceResponse(error=pb_utils.TritonError(message))]
            # 24.10 can crash when anything is sent after an error, so it goes with the final flag
            sender.send(*answer, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def _generate(self, request, sender):
        inputs = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        seed, window = inputs["seed"].tolist()
        if window < 0:
            raise SettingError(f"window is {window}: it counts from 0.")
        sampling = Sampling(
            sampler=inputs["sampler"][0].decode(errors="replace"),
            steps=int(inputs["steps"][0]),
            guidance=float(inputs["guidance"][0]),
            eta=float(inputs["eta"][0]),
            seed=seed,
            spacing=inputs["spacing"][0].decode(errors="replace"),
            guidance_interval=tuple(inputs["guidance_interval"].tolist()),
        )
        denoise = served_denoiser(infer, inputs["envelope"], inputs["embedding"], inputs["negative_embedding"])
        for step, latents in enumerate(sample(denoise, sampling, window), start=1):
            if request.is_cancelled():
                return
            sound = None
            if step == sampling.steps:
                sound = infer("latents_to_waveform", ("waveform",), latents=latents[None])["waveform"][0]
            sender.send(event(step, sound))


def event(step, waveform=None):
    """A response: `step` steps are done; `waveform` only with the last."""
    sound = np.zeros(0, np.float32) if waveform is None else waveform
    return pb_utils.InferenceResponse(
        [pb_utils.Tensor("step", np.array([step], np.int32)), pb_utils.Tensor("waveform", sound)]
    )


def infer(model, outputs, **inputs):
    """The named outputs of another served model."""
    request = pb_utils.InferenceRequest(
        model_name=model,
        requested_output_names=list(outputs),
        inputs=[pb_utils.Tensor(name, array) for name, array in inputs.items()],
        preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU),  # also of what a GPU answers
    )
    response = request.exec()
    if response.has_error():
        raise ServerFailure(f"{model}: {response.error().message()}")
    # copied: the response's memory goes with the response
    return {name: pb_utils.get_output_tensor_by_name(response, name).as_numpy().copy() for name in outputs}
