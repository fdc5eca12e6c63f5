"""The diffusion loop inside the server: the same `foley.sampler` that the client drives."""

import numpy as np
import triton_python_backend_utils as pb_utils

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
        )
        conditions = {name: inputs[name][None] for name in ("envelope", "embedding", "negative_embedding", "guidance")}

        def denoise(latents, timestep):
            return infer(
                "denoiser", "noise", latents=latents[None], timestep=np.array([[timestep]], np.int64), **conditions
            )[0]

        for step, latents in enumerate(sample(denoise, sampling, window), start=1):
            if request.is_cancelled():
                return
            sound = (
                infer("latents_to_waveform", "waveform", latents=latents[None])[0] if step == sampling.steps else None
            )
            sender.send(event(step, sound))


def event(step, waveform=None):
    """A response: `step` steps are done; `waveform` only with the last."""
    sound = np.zeros(0, np.float32) if waveform is None else waveform
    return pb_utils.InferenceResponse(
        [pb_utils.Tensor("step", np.array([step], np.int32)), pb_utils.Tensor("waveform", sound)]
    )


def infer(model, output, **inputs):
    """One output of another served model."""
    request = pb_utils.InferenceRequest(
        model_name=model,
        requested_output_names=[output],
        inputs=[pb_utils.Tensor(name, array) for name, array in inputs.items()],
    )
    response = request.exec()
    if response.has_error():
        raise ServerFailure(f"{model}: {response.error().message()}")
    array = pb_utils.get_output_tensor_by_name(response, output).as_numpy()
    return array.copy()  # the response's memory goes with the response
