"""The tensor contract of every served model: names, dtypes and shapes.

The single source for the inputs and outputs of the ONNX graphs, for `config.pbtxt` and for the client. Shapes exclude
the batch dimension, as in Triton's model configuration; a string in a shape names a variable dimension.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from foley import clip
from foley.manifest import Manifest, OpticalFlowConfig
from foley.options import OpticalFlow

Dtype = Literal["uint8", "int32", "int64", "float32", "bytes"]
Kind = Literal["network", "ensemble", "python"]

SHARED_WEIGHTS: Mapping[str, str] = {"optical_flow_warm": "optical_flow"}
"""Maps each network without weights to the network whose weights it uses."""


def features_stage(flow: OpticalFlow) -> str:
    """Return the name of the ensemble that computes features with the optical flow `flow`."""
    return "frames_to_features" if flow == "default" else f"frames_to_features_{flow}"


@dataclass(frozen=True)
class Tensor:
    """One input or output of a stage."""

    name: str
    dtype: Dtype
    shape: tuple[int | str, ...]

    @property
    def numpy_dtype(self) -> "np.dtype[Any]":
        """NumPy dtype of this tensor; `object_` for `bytes`."""
        return np.dtype(np.object_ if self.dtype == "bytes" else self.dtype)


@dataclass(frozen=True)
class Stage:
    """One served model.

    Attributes:
        name: Name of the model in Triton.
        kind: How the model is implemented.
        inputs: Input tensors.
        outputs: Output tensors.
        max_batch: Maximum batch size; 0: no batch dimension. The first dimension of the video models is time.
        decoupled: Whether the model sends several responses per request.
    """

    name: str
    kind: Kind
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    max_batch: int = 0
    decoupled: bool = False

    def shape(self, tensor: Tensor) -> tuple[int | str, ...]:
        """Return the shape of `tensor`, including the batch dimension if the model has one."""
        return ("batch", *tensor.shape) if self.max_batch else tensor.shape


def stages(manifest: Manifest) -> Mapping[str, Stage]:
    """Return the served models of the bundle that `manifest` describes, by name."""
    frames = Tensor("frames", "uint8", ("frames", clip.FRAME_HEIGHT, clip.FRAME_WIDTH, 3))
    flow = Tensor("flow", "uint8", ("pairs", clip.FRAME_HEIGHT, clip.FRAME_WIDTH, 2))
    rgb_width, flow_width = manifest.rgb_features.width, manifest.flow_features.width
    envelope = Tensor("envelope", "float32", (clip.PADDED_ENVELOPE,))
    text = Tensor("text", "bytes", (1,))
    input_ids = Tensor("input_ids", "int64", ("tokens",))
    attention_mask = Tensor("attention_mask", "int64", ("tokens",))
    embedding = Tensor("embedding", "float32", (clip.EMBEDDING_DIM,))
    negative = Tensor("negative_embedding", "float32", (clip.EMBEDDING_DIM,))
    guidance = Tensor("guidance", "float32", (1,))
    latents = Tensor("latents", "float32", (clip.LATENT_CHANNELS, clip.LATENT_FRAMES, clip.LATENT_BINS))
    mel = Tensor("mel", "float32", (clip.PADDED_ENVELOPE, clip.MEL_BINS))
    waveform = Tensor("waveform", "float32", (clip.PADDED_SAMPLES,))

    noise = Tensor("noise", "float32", latents.shape)
    denoiser_inputs = (latents, Tensor("timestep", "int64", (1,)), envelope, embedding, negative, guidance)
    features = (Tensor("rgb", "float32", ("pairs", rgb_width)), Tensor("flow", "float32", ("pairs", flow_width)))

    is_raft = isinstance(manifest.optical_flow, OpticalFlowConfig)
    in_place_of_raft = (
        Stage("optical_flow_warm", "network", (frames,), (flow,)),
        Stage("optical_flow_dis", "python", (frames,), (flow,)),
        Stage("frames_to_features_warm", "ensemble", (frames,), features),
        Stage("frames_to_features_dis", "ensemble", (frames,), features),
    )
    table = (
        Stage("optical_flow", "network" if is_raft else "python", (frames,), (flow,)),
        Stage("rgb_features", "network", (frames,), (Tensor("rgb", "float32", ("pairs", rgb_width)),)),
        Stage("flow_features", "network", (flow,), (Tensor("flow_features", "float32", ("pairs", flow_width)),)),
        Stage("frames_to_features", "ensemble", (frames,), features),
        *(in_place_of_raft if is_raft else ()),
        Stage(
            "video2rms",
            "network",
            (Tensor("features", "float32", (clip.CLIP_FRAMES, manifest.features_width)),),
            (envelope, Tensor("classes", "int64", (clip.CLIP_CLASSES,))),
            max_batch=4,
        ),
        Stage("tokenizer", "python", (text,), (input_ids, attention_mask), max_batch=16),
        Stage("clap_text", "network", (input_ids, attention_mask), (embedding,), max_batch=16),
        Stage("text_to_embedding", "ensemble", (text,), (embedding,), max_batch=16),
        Stage("clap_audio", "network", (waveform,), (embedding,), max_batch=4),
        Stage("denoiser", "network", denoiser_inputs, (noise,), max_batch=16),
        Stage("vae_decoder", "network", (latents,), (mel,), max_batch=4),
        Stage("vocoder", "network", (mel,), (waveform,), max_batch=4),
        Stage("latents_to_waveform", "ensemble", (latents,), (waveform,), max_batch=4),
        Stage(
            "generate",
            "python",
            (
                envelope,
                embedding,
                negative,
                Tensor("options", "bytes", (1,)),  # `foley.sampler.Sampling.encode`
            ),
            # `step` counts up to `steps`; `waveform` is empty until the last response
            (Tensor("step", "int32", (1,)), Tensor("waveform", "float32", ("samples",))),
            decoupled=True,
        ),
    )
    return {stage.name: stage for stage in table}


def networks(manifest: Manifest) -> Mapping[str, Stage]:
    """Return the stages that are networks; a bundle contains an ONNX graph for each."""
    return {name: stage for name, stage in stages(manifest).items() if stage.kind == "network"}


def weighted_networks(manifest: Manifest) -> Mapping[str, Stage]:
    """Return the networks that have weights in a bundle: those not in `SHARED_WEIGHTS`."""
    return {name: stage for name, stage in networks(manifest).items() if name not in SHARED_WEIGHTS}
