"""Layouts of published checkpoints: the keys and shapes of a network's tensors, and what else a file holds."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from foley.manifest import Manifest
from foley_export import huggingface, recognise
from foley_export.networks.network import Network
from foley_export.recognise import Kind

_COUNTERS = {"counters": r".*\.(num_batches_tracked|position_ids|token_type_ids)"}


@dataclass(frozen=True)
class Layout:
    """The layout of a published file; this class is for files with the official keys.

    Attributes:
        kind: The model in the file, and the command-line option for it.
        stages: Stages whose weights the file can hold.
        unused: Other tensors that the file may hold: name in the report -> regular expression of whole keys.
        neutral: Unused tensors that must equal this number everywhere, because our network omits them.
        modern: Converts a key and a tensor of older files to the current format.
    """

    kind: Kind
    stages: tuple[str, ...]
    unused: Mapping[str, str] = field(default_factory=dict)
    neutral: Mapping[str, float] = field(default_factory=dict)
    modern: Callable[[str, Tensor], tuple[str, Tensor]] = lambda key, tensor: (key, tensor)

    @property
    def option(self) -> str:
        """The option of `foley-export import` for this file."""
        return self.kind.option or ""

    def name(self, network: Network, manifest: Manifest, key: str) -> str | None:
        """Return the file's key for the state-dict `key` of `network`, or None if the layout has no such tensor."""
        return network.checkpoint_key(key)

    def shape(self, network: Network, key: str) -> tuple[int, ...]:
        """Return the shape in the file of the tensor with state-dict `key`."""
        return network.checkpoint_shape(key)

    def convert(self, network: Network, key: str, tensor: Tensor) -> Tensor:
        """Return the file's `tensor` in the shape that `network` has."""
        return network.from_checkpoint(key, tensor)

    def group(self, key: str) -> str | None:
        """Return the report name of an unused key, or None if the key is unexpected."""
        return next((name for name, pattern in self.unused.items() if re.fullmatch(pattern, key)), None)


@dataclass(frozen=True)
class HuggingFaceLayout(Layout):
    """The layout of a diffusers or transformers file: other keys, the same shapes as our modules.

    Attributes:
        rename: Maps the manifest and a state-dict key to the file's key, or None; implements `name`.
    """

    rename: Callable[[Manifest, str], str | None] = lambda manifest, key: None

    def name(self, network: Network, manifest: Manifest, key: str) -> str | None:
        """Return the file's key for the state-dict `key`, or None; see `Layout.name`."""
        return self.rename(manifest, key)

    def shape(self, network: Network, key: str) -> tuple[int, ...]:
        """Return the shape in the file, which is that of our module."""
        return tuple(network.tensor(key).shape)

    def convert(self, network: Network, key: str, tensor: Tensor) -> Tensor:
        """Return `tensor` unchanged."""
        return tensor


def _without_leading_one(key: str, tensor: Tensor) -> tuple[str, Tensor]:
    """Drop the leading axis of batch-norm tensors, which the published BN-Inception stores as [1, channels]."""
    return key, tensor[0] if tensor.dim() == 2 and len(tensor) == 1 and "_bn." in key else tensor


OFFICIAL = (
    Layout(recognise.RAFT, ("optical_flow",), _COUNTERS),
    Layout(
        recognise.BN_INCEPTION,
        ("rgb_features", "flow_features"),
        {"classifier": r"(fc|last_linear|classifier)[^.]*\..*", **_COUNTERS},
        modern=_without_leading_one,
    ),
    Layout(
        recognise.VIDEO2RMS,
        ("video2rms",),
        {"onset head, for training": r"encoder\.onset_head\..*", **_COUNTERS},
    ),
    Layout(
        recognise.RMS2SOUND,
        ("clap_text", "clap_audio", "denoiser", "vae_decoder", "vocoder"),
        {
            "EMA copies": r"model_ema\.(decay|num_updates|diffusion_model\w+)",
            "noise schedule": (
                r"betas|logvar|log_one_minus_alphas_cumprod|posterior_\w+"
                r"|(sqrt_(recip|recipm1|one_minus)_|sqrt_)?alphas_cumprod(_prev)?"
            ),
            "scale factor (kept in the manifest)": r"scale_factor",
            "VAE encoder": r"first_stage_model\.(encoder|quant_conv)\..*",
            "CLAP for ranking": r"clap\..*",
            "CLAP front-end constants": (
                r"cond_stage_models\.0\.(mel_transform|model\.audio_branch\.(spectrogram|logmel)_extractor)\..*"
            ),
            "CLAP attention masks": r"cond_stage_models\.0\.model\.audio_branch\.layers\..*\.attn_mask",
            "CLAP heads for training": (
                r"cond_stage_models\.0\.model\."
                r"(audio_branch\.(tscam_conv|head)\..*|(text|audio)_transform\..*|logit_scale_[at])"
            ),
            **_COUNTERS,
        },
    ),
)
HUGGING_FACE = (
    HuggingFaceLayout(recognise.DIFFUSERS_UNET, ("denoiser",), rename=huggingface.unet_key),
    HuggingFaceLayout(
        recognise.DIFFUSERS_VAE,
        ("vae_decoder",),
        {"VAE encoder": r"(encoder|quant_conv)\..*"},
        modern=huggingface.modern_vae,
        rename=huggingface.vae_key,
    ),
    HuggingFaceLayout(
        recognise.HUGGING_FACE_VOCODER,
        ("vocoder",),
        {"constants": "mean|scale"},
        neutral={"mean": 0, "scale": 1},
        rename=huggingface.vocoder_key,
    ),
    HuggingFaceLayout(
        recognise.HUGGING_FACE_CLAP,
        ("clap_text", "clap_audio"),
        {"CLAP heads for training": r"logit_scale_[at]", **_COUNTERS},
        rename=huggingface.clap_key,
    ),
)
"""These take precedence over the official file."""
