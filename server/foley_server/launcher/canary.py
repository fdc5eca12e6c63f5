"""One step of the denoiser, which shows whether a Triton that says it is ready really computes."""

import numpy as np

from foley.errors import ServerFailure
from foley_pipeline.cancellation import CancelToken
from foley_pipeline.triton import TritonClient

STAGE = "denoiser"
_TIMESTEP = 500  # in the middle of the schedule, where no bundle's result overflows


def check(client: TritonClient, cancel: CancelToken, timeout_s: float) -> None:
    """Run one denoiser step of one row with fixed inputs.

    Args:
        client: Connection to the Triton.
        cancel: Ends the check.
        timeout_s: Time limit of the step, in seconds, including its time in Triton's queue.

    Raises:
        FoleyError: The step failed, was too slow, or its result is not finite.
    """
    stage = client.stages[STAGE]
    fixed = {"timestep": _TIMESTEP, "guidance": 1.0}
    inputs = {
        tensor.name: np.full((1, *map(int, tensor.shape)), fixed.get(tensor.name, 0.1), tensor.numpy_dtype)
        for tensor in stage.inputs
    }
    with cancel.child(timeout_s) as token:
        result = client.under(token).infer(STAGE, **inputs)
    for tensor in stage.outputs:
        array = result[tensor.name]
        if array is None or array.shape != (1, *tensor.shape) or not np.isfinite(array).all():
            raise ServerFailure(
                f"a step of the {STAGE} gives {tensor.name} that is not finite or has the wrong shape; "
                "check the bundle and the GPU"
            )
