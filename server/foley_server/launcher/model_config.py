"""Triton's model configurations, from the contract in `foley.stages`, scheduling settings and ensemble steps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import get_args

from tritonclient.grpc import model_config_pb2

from foley.options import OpticalFlow
from foley.stages import Dtype, Stage, Tensor, features_stage

DATA_TYPES: dict[Dtype, int] = {
    "uint8": model_config_pb2.TYPE_UINT8,
    "int32": model_config_pb2.TYPE_INT32,
    "int64": model_config_pb2.TYPE_INT64,
    "float32": model_config_pb2.TYPE_FP32,
    "bytes": model_config_pb2.TYPE_STRING,
}

QUEUE_DELAY_US: Mapping[str, int] = {"denoiser": 1500}
"""Time for which the dynamic batcher waits for more requests; 0 if not listed.

Without a delay, two clients that each wait for their step alternate and are never batched: after a batch, the batcher
waits for the next steps of its clients. A single client pays this delay at every step, so it is short.
"""

INSTANCES: Mapping[str, int] = {"generate": 2}
"""Number of instances; 1 if not listed. An instance of `generate` runs one diffusion loop at a time."""


@dataclass(frozen=True)
class Step:
    """A step of an ensemble.

    Attributes:
        model: Model to run.
        renamed: Maps tensors of the model to tensors of the ensemble, if their names differ.
    """

    model: str
    renamed: Mapping[str, str] = field(default_factory=dict)


def _features(optical_flow: str) -> Sequence[Step]:
    return (
        Step(optical_flow, {"flow": "flow_image"}),
        Step("flow_features", {"flow": "flow_image", "flow_features": "flow"}),
        Step("rgb_features"),
    )


ENSEMBLES: Mapping[str, Sequence[Step]] = {
    **{
        features_stage(flow): _features("optical_flow" if flow == "default" else f"optical_flow_{flow}")
        for flow in get_args(OpticalFlow)
    },
    "text_to_embedding": (Step("tokenizer"), Step("clap_text")),
    "latents_to_waveform": (Step("vae_decoder"), Step("vocoder")),
}


def model_config(stage: Stage, stages: Mapping[str, Stage]) -> model_config_pb2.ModelConfig:
    """Return the configuration of `stage` on the CPU.

    Args:
        stage: The model.
        stages: All models of the bundle, by name.
    """
    config = model_config_pb2.ModelConfig(name=stage.name, max_batch_size=stage.max_batch)
    for tensor in stage.inputs:
        config.input.add(name=tensor.name, data_type=DATA_TYPES[tensor.dtype], dims=dims(tensor))
    for tensor in stage.outputs:
        config.output.add(name=tensor.name, data_type=DATA_TYPES[tensor.dtype], dims=dims(tensor))
    if stage.kind == "ensemble":
        config.platform = "ensemble"
        for step in ENSEMBLES[stage.name]:
            added = config.ensemble_scheduling.step.add(model_name=step.model, model_version=-1)
            for tensor in stages[step.model].inputs:
                added.input_map[tensor.name] = step.renamed.get(tensor.name, tensor.name)
            for tensor in stages[step.model].outputs:
                added.output_map[tensor.name] = step.renamed.get(tensor.name, tensor.name)
        return config
    config.backend = "python"
    config.instance_group.add(kind=model_config_pb2.ModelInstanceGroup.KIND_CPU, count=INSTANCES.get(stage.name, 1))
    if stage.max_batch:
        config.dynamic_batching.max_queue_delay_microseconds = QUEUE_DELAY_US.get(stage.name, 0)
    if stage.decoupled:
        config.model_transaction_policy.decoupled = True
    return config


def dims(tensor: Tensor) -> list[int]:
    """Return the shape of `tensor` as Triton dims: -1 for variable dimensions."""
    return [-1 if isinstance(size, str) else size for size in tensor.shape]
