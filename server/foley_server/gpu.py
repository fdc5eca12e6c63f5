"""What a model's configuration says on a GPU: backend, instances, batching, CUDA graphs, warm-up.

For the backends of the official Triton container: `onnxruntime` with its CUDA provider, and `tensorrt`. Tensors between
two networks of an ensemble stay on the device without being told to; what is for Python models comes to the host.
"""

from dataclasses import dataclass
from typing import Literal

from tritonclient.grpc import model_config_pb2

from foley import clip
from foley.bundle import Half, Tuning, engine_file, graph_file
from foley.stages import Stage, Tensor

Target = Literal["cuda", "tensorrt"]

CUDA_GRAPHS = frozenset({"denoiser"})
"""Called once a step: where starting a thousand kernels costs most. The others run once a clip."""

KIND = model_config_pb2.ModelInstanceGroup.KIND_GPU  # not KIND_AUTO: without a GPU a server must not come up, and crawl

FULL_BATCH_DELAY_US = 3_000
_SHORT_TEXT = 16  # tokens: what a prompt has


@dataclass(frozen=True)
class Gpu:
    """How networks run on the GPU.

    Attributes:
        precision: of the graphs, or of those that the engines were built from.
        tuning: "latency": a step waits for nobody; "throughput": for some milliseconds, for a full batch.
    """

    target: Target
    precision: Half = "fp16"
    tuning: Tuning = "latency"

    @property
    def model_file(self) -> str:
        """Under this name Triton's backend finds the network in its model's folder."""
        return "model.onnx" if self.target == "cuda" else "model.plan"

    def source(self, stage: str) -> str:
        """Path inside the bundle of what is served."""
        if self.target == "cuda":
            return graph_file(stage, self.precision)
        return engine_file(stage, self.precision, self.tuning)


def configure(config: model_config_pb2.ModelConfig, stage: Stage, gpu: Gpu) -> None:
    """Let the network `stage`, configured for the processor, run on the GPU."""
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
        # the fastest convolutions, found once; and one stream, so that copies and kernels need no events between them
        accelerator.parameters["cudnn_conv_use_max_workspace"] = "1"
        accelerator.parameters["use_ep_level_unified_stream"] = "1"
    elif stage.name in CUDA_GRAPHS:
        _capture_graphs(config, stage)
    for batch in _batches(stage):
        _warm_up(config, stage, batch)


def _capture_graphs(config: model_config_pb2.ModelConfig, stage: Stage) -> None:
    """A CUDA graph for every batch size: all other dimensions are fixed."""
    cuda = config.optimization.cuda
    cuda.graphs = True
    cuda.output_copy_stream = True
    for batch in range(1, stage.max_batch + 1):
        spec = cuda.graph_spec.add(batch_size=batch)
        for tensor in stage.inputs:
            spec.input[tensor.name].dim[:] = _usual(tensor)


def _batches(stage: Stage) -> list[int]:
    """The batch sizes that are run before the model is ready: one, and the largest. 0 where there are no batches."""
    return sorted({1, stage.max_batch}) if stage.max_batch else [0]


def _warm_up(config: model_config_pb2.ModelConfig, stage: Stage, batch: int) -> None:
    warmup = config.model_warmup.add(name=f"batch of {batch}" if batch else "one call", batch_size=batch)
    for tensor in stage.inputs:
        configured = next(one for one in config.input if one.name == tensor.name)
        said = warmup.inputs[tensor.name]
        said.data_type = configured.data_type
        said.dims[:] = _usual(tensor)
        said.zero_data = True


def _usual(tensor: Tensor) -> list[int]:
    sizes = {"frames": clip.CHUNK_PAIRS + 1, "pairs": clip.CHUNK_PAIRS, "tokens": _SHORT_TEXT}
    return [sizes[size] if isinstance(size, str) else size for size in tensor.shape]
