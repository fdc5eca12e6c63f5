"""The layouts in which weights were published: where a file keeps a network's tensors, and what else it holds."""

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
    """A published file: here with the official keys, which every `Network` knows.

    Attributes:
        kind: the model that the file is of, and the option that takes it.
        stages: whose weights it can hold.
        unused: what it may hold besides, as regular expressions of whole keys, each under the name it is listed by.
        neutral: unused tensors that must be this number everywhere, since our network does without them.
        modern: the key and the tensor as files hold them that are written today, for one that is perhaps older.
    """

    kind: Kind
    stages: tuple[str, ...]
    unused: Mapping[str, str] = field(default_factory=dict)
    neutral: Mapping[str, float] = field(default_factory=dict)
    modern: Callable[[str, Tensor], tuple[str, Tensor]] = lambda key, tensor: (key, tensor)

    @property
    def option(self) -> str:
        """Of `foley-export import` that takes such a file."""
        return self.kind.option or ""

    def name(self, network: Network, manifest: Manifest, key: str) -> str | None:
        """The file's key for the state-dict `key` of `network`; None: the layout has no such tensor."""
        return network.checkpoint_key(key)

    def shape(self, network: Network, key: str) -> tuple[int, ...]:
        """The shape that the file gives it."""
        return network.checkpoint_shape(key)

    def convert(self, network: Network, key: str, tensor: Tensor) -> Tensor:
        """The file's tensor in the shape that `network` has."""
        return network.from_checkpoint(key, tensor)

    def group(self, key: str) -> str | None:
        """The name under which an unused key is listed; None: it should not be there."""
        return next((name for name, pattern in self.unused.items() if re.fullmatch(pattern, key)), None)


@dataclass(frozen=True)
class HuggingFaceLayout(Layout):
    """A file of diffusers or transformers: other keys, the shapes of our modules.

    Attributes:
        rename: what `name` answers for a state-dict key.
    """

    rename: Callable[[Manifest, str], str | None] = lambda manifest, key: None

    def name(self, network: Network, manifest: Manifest, key: str) -> str | None:
        return self.rename(manifest, key)

    def shape(self, network: Network, key: str) -> tuple[int, ...]:
        return tuple(network.tensor(key).shape)

    def convert(self, network: Network, key: str, tensor: Tensor) -> Tensor:
        return tensor


def _without_leading_one(key: str, tensor: Tensor) -> tuple[str, Tensor]:
    """The published BN-Inception keeps its batch normalisation as [1, channels]."""
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
"""They take precedence over the official file."""
