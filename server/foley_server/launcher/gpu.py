"""Configures models for a GPU: backend, instances, batching, CUDA graphs, warm-up.

Uses the backends of the official Triton container: `onnxruntime` with its CUDA provider, and `tensorrt`. Triton keeps
tensors between two networks of an ensemble on the device without any setting; inputs of Python models are copied to
the host.
"""

from dataclasses import dataclass
from typing import Literal

from tritonclient.grpc import model_config_pb2

from foley import clip
from foley.bundle import Half, Tuning, engine_file, graph_file
from foley.stages import Stage, Tensor

Target = Literal["cuda", "tensorrt"]

CUDA_GRAPHS = frozenset({"denoiser"})
"""Networks to capture as CUDA graphs: called once per denoising step, about 1,000 kernel launches each.

The other networks run once per clip.
"""

KIND = model_config_pb2.ModelInstanceGroup.KIND_GPU  # not KIND_AUTO, which falls back to the CPU if there is no GPU

FULL_BATCH_DELAY_US = 3_000
_SHORT_TEXT = 16  # tokens of a typical prompt


@dataclass(frozen=True)
class Gpu:
    """How networks run on the GPU.

    Attributes:
        target: "cuda" for ONNX Runtime graphs, "tensorrt" for engines.
        precision: Precision of the graphs, or of the graphs that the engines were built from.
        tuning: "latency": no queue delay; "throughput": requests wait up to `FULL_BATCH_DELAY_US` for a full batch.
    """

    target: Target
    precision: Half = "fp16"
    tuning: Tuning = "latency"

    @property
    def model_file(self) -> str:
        """File name under which the backend looks for the network in the model's version folder."""
        return "model.onnx" if self.target == "cuda" else "model.plan"

    def source(self, stage: str) -> str:
        """Return the path, inside the bundle, of the graph or engine of `stage`."""
        if self.target == "cuda":
            return graph_file(stage, self.precision)
        return engine_file(stage, self.precision, self.tuning)


def configure(config: model_config_pb2.ModelConfig, stage: Stage, gpu: Gpu) -> None:
    """Change `config` of the network `stage` from the CPU to the GPU, in place."""
    config.backend = "onnxruntime" if gpu.target == "cuda" else "tensorrt"
    config.default_model_filename = gpu.model_file
    del config.instance_group[:]
    config.instance_group.add(kind=KIND, count=1)
    if config.HasField("dynamic_batching"):
        config.dynamic_batching.max_queue_delay_microseconds = 0 if gpu.tuning == "latency" else FULL_BATCH_DELAY_US
        if gpu.tuning == "throughput":
            config.dynamic_batching.preferred_batch_size[:] = [stage.max_batch]
    if gpu.target == "cuda":
        accelerator = config.optimization.execution_accelerators.gpu_execution_accelerator.add(name="cuda")
        # search for the fastest convolutions, once; one stream, so that copies and kernels need no events between them
        accelerator.parameters["cudnn_conv_use_max_workspace"] = "1"
        accelerator.parameters["use_ep_level_unified_stream"] = "1"
    elif stage.name in CUDA_GRAPHS:
        _capture_graphs(config, stage)
    for batch in _warm_up_batches(stage):
        _warm_up(config, stage, batch)


def _capture_graphs(config: model_config_pb2.ModelConfig, stage: Stage) -> None:
    """Capture a CUDA graph for every batch size; all other dimensions are fixed."""
    cuda = config.optimization.cuda
    cuda.graphs = True
    cuda.output_copy_stream = True
    for batch in range(1, stage.max_batch + 1):
        spec = cuda.graph_spec.add(batch_size=batch)
        for tensor in stage.inputs:
            spec.input[tensor.name].dim[:] = _typical_shape(tensor)


def _warm_up_batches(stage: Stage) -> list[int]:
    """Return the batch sizes for warm-up: 1 and the maximum; [0] if the model does not batch."""
    return sorted({1, stage.max_batch}) if stage.max_batch else [0]


def _warm_up(config: model_config_pb2.ModelConfig, stage: Stage, batch: int) -> None:
    warmup = config.model_warmup.add(name=f"batch of {batch}" if batch else "one call", batch_size=batch)
    for tensor in stage.inputs:
        configured = next(one for one in config.input if one.name == tensor.name)
        tensor_config = warmup.inputs[tensor.name]
        tensor_config.data_type = configured.data_type
        tensor_config.dims[:] = _typical_shape(tensor)
        tensor_config.zero_data = True


def _typical_shape(tensor: Tensor) -> list[int]:
    sizes = {"frames": clip.CHUNK_PAIRS + 1, "pairs": clip.CHUNK_PAIRS, "tokens": _SHORT_TEXT}
    return [sizes[size] if isinstance(size, str) else size for size in tensor.shape]
