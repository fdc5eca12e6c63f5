"""The backends that run a network on tensors on a GPU.

A backend raises FoleyError if it is unavailable.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from foley.bundle import Bundle, Half, engine_file, graph_file
from foley.errors import FoleyError
from foley_bench.baseline.networks import run
from foley_bench.gpu.device import Device
from foley_export.networks.network import Network

Call = Callable[[], Sequence[Tensor]]
"""Runs a network on its inputs; returns the outputs in the stage's order."""

_DTYPES: Mapping[Half, torch.dtype] = {"fp16": torch.float16, "bf16": torch.bfloat16}


class Workload:
    """A network and its inputs, on the device."""

    def __init__(self, bundle: Bundle, network: Network, inputs: Sequence[Tensor], device: Device, half: Half) -> None:
        self.bundle, self.device, self.half = bundle, device, half
        self.network = network.to(device.name)
        self.inputs = [tensor.to(device.name) for tensor in inputs]
        self.stage = network.stage


def baseline(workload: Workload) -> Call:
    """Eager PyTorch in float32 in the official order of work; see `foley_bench.baseline`."""
    return lambda: run(workload.network, workload.inputs)


def eager(workload: Workload) -> Call:
    """This project's network in eager PyTorch, in float32."""
    return lambda: tensors(workload.network(*workload.inputs))


def autocast(workload: Workload) -> Call:
    """The same network under autocast to half precision."""

    def call() -> Sequence[Tensor]:
        with torch.autocast(workload.device.name, _DTYPES[workload.half]):
            return tensors(workload.network(*workload.inputs))

    return call


def compiled(workload: Workload) -> Call:
    """The same network compiled by torch.compile, with CUDA graphs if possible."""
    if not workload.device.is_gpu:
        raise FoleyError("torch.compile is measured on GPUs only")
    call = torch.compile(workload.network, mode="reduce-overhead", dynamic=False)

    def run() -> Sequence[Tensor]:
        torch.compiler.cudagraph_mark_step_begin()
        with torch.autocast(workload.device.name, _DTYPES[workload.half]):
            return tensors(call(*workload.inputs))

    return run


def onnx_runtime(workload: Workload) -> Call:
    """The half-precision graph in ONNX Runtime's CUDA provider, with inputs and outputs on the device."""
    import onnxruntime as ort

    if "CUDAExecutionProvider" not in ort.get_available_providers():
        raise FoleyError("ONNX Runtime has no CUDA provider; run `pip install onnxruntime-gpu`")
    graph = _require(
        workload, graph_file(workload.stage.name, workload.half), f"foley-export onnx --precision {workload.half}"
    )
    session = ort.InferenceSession(graph, providers=[("CUDAExecutionProvider", {"cudnn_conv_use_max_workspace": "1"})])
    outputs = [
        torch.empty(tuple(one.shape), dtype=one.dtype, device=workload.device.name)
        for one in tensors(workload.network(*workload.inputs))
    ]
    binding = session.io_binding()
    for tensor, value in zip(workload.stage.inputs, workload.inputs, strict=True):
        _bind(binding.bind_input, tensor.name, value, tensor.numpy_dtype)
    for tensor, value in zip(workload.stage.outputs, outputs, strict=True):
        _bind(binding.bind_output, tensor.name, value, tensor.numpy_dtype)

    def call() -> Sequence[Tensor]:
        session.run_with_iobinding(binding)
        return outputs

    return call


def tensorrt(workload: Workload) -> Call:
    """The engine built by `foley-export tensorrt`, with inputs and outputs on the device."""
    try:
        import tensorrt as trt
    except ImportError as error:
        raise FoleyError(f"TensorRT is not installed ({error}); run `pip install 'tensorrt>=11,<12'`") from error
    engine = _require(
        workload,
        engine_file(workload.stage.name, workload.half, "latency"),
        f"foley-export tensorrt --precision {workload.half}",
    )
    runtime = trt.Runtime(trt.Logger(trt.Logger.WARNING))
    loaded = runtime.deserialize_cuda_engine(engine.read_bytes())
    if loaded is None:
        raise FoleyError(f"{engine} is for another GPU or TensorRT; run `foley-export tensorrt {workload.bundle.root}`")
    context = loaded.create_execution_context()
    for tensor, value in zip(workload.stage.inputs, workload.inputs, strict=True):
        context.set_input_shape(tensor.name, tuple(value.shape))
        context.set_tensor_address(tensor.name, value.data_ptr())
    outputs = []
    for tensor in workload.stage.outputs:
        shape = tuple(context.get_tensor_shape(tensor.name))
        dtype = torch.from_numpy(_empty(tensor.numpy_dtype)).dtype
        outputs.append(torch.empty(shape, dtype=dtype, device=workload.device.name))
        context.set_tensor_address(tensor.name, outputs[-1].data_ptr())
    stream = torch.cuda.current_stream()

    def call() -> Sequence[Tensor]:
        context.execute_async_v3(stream.cuda_stream)
        return outputs

    # the call keeps alive what the context only points to
    call.keep_alive = (runtime, loaded, context, workload.inputs)  # type: ignore[attr-defined]
    return call


BACKENDS: Mapping[str, Callable[[Workload], Call]] = {
    "baseline": baseline,
    "eager": eager,
    "autocast": autocast,
    "torch.compile": compiled,
    "ONNX Runtime": onnx_runtime,
    "TensorRT": tensorrt,
}


def _require(workload: Workload, name: str, command: str) -> Any:
    path = workload.bundle.path(name)
    if not path.is_file():
        raise FoleyError(f"{path} is missing; run `{command} {workload.bundle.root}`")
    return path


def tensors(outputs: object) -> Sequence[Tensor]:
    """Return the outputs of a network, which may be one tensor or a tuple, as a sequence."""
    return outputs if isinstance(outputs, tuple) else [outputs]  # type: ignore[list-item]


def _bind(bind: Callable[..., None], name: str, value: Tensor, dtype: Any) -> None:
    bind(name, "cuda", 0, dtype, tuple(value.shape), value.data_ptr())


def _empty(dtype: Any) -> Any:
    import numpy as np

    return np.empty(0, dtype)
