"""Layouts of the published checkpoints: the networks in a file, and its other tensors."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from foley_export import recognise
from foley_export.recognise import Kind

_COUNTERS = {"counters": r".*\.(num_batches_tracked|position_ids|token_type_ids)"}


@dataclass(frozen=True)
class Layout:
    """The layout of a published file.

    Attributes:
        kind: The model in the file, and the command-line option for it.
        stages: Stages whose weights the file holds.
        unused: Other tensors that the file may hold: name in the report -> regular expression of whole keys.
        normalise: Converts a tensor of the file to the current format, given its key.
    """

    kind: Kind
    stages: tuple[str, ...]
    unused: Mapping[str, str] = field(default_factory=dict)
    normalise: Callable[[str, Tensor], Tensor] = lambda key, tensor: tensor

    @property
    def option(self) -> str:
        """The option of `foley-export import` for this file."""
        return self.kind.option or ""

    def group(self, key: str) -> str | None:
        """Return the report name of an unused key, or None if the key is unexpected."""
        return next((name for name, pattern in self.unused.items() if re.fullmatch(pattern, key)), None)


def _without_leading_one(key: str, tensor: Tensor) -> Tensor:
    """Drop the leading axis of batch-norm tensors, which the published BN-Inception stores as [1, channels]."""
    return tensor[0] if tensor.dim() == 2 and len(tensor) == 1 and "_bn." in key else tensor


LAYOUTS = (
    Layout(recognise.RAFT, ("optical_flow",), _COUNTERS),
    Layout(
        recognise.BN_INCEPTION,
        ("rgb_features", "flow_features"),
        {"classifier": r"(fc|last_linear|classifier)[^.]*\..*", **_COUNTERS},
        normalise=_without_leading_one,
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
