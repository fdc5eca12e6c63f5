"""Identifies the model of a checkpoint by the names of its tensors."""

import re
from collections.abc import Iterable
from typing import NamedTuple


class Kind(NamedTuple):
    """A known kind of checkpoint.

    Attributes:
        name: Name in messages, with its article.
        option: Option of `foley-export import` for it, or None if it cannot be imported.
        patterns: Regular expressions; each must match the start of at least one key.
    """

    name: str
    option: str | None
    patterns: tuple[str, ...]


RMS2SOUND = Kind("an RMS2Sound checkpoint", "--rms2sound", (r"model\.diffusion_model\.control_net\.",))
VIDEO2RMS = Kind("a Video2RMS checkpoint", "--video2rms", (r"encoder\.convolutions\.\d", r"encoder\.BiLSTM"))
BN_INCEPTION = Kind("a BN-Inception checkpoint", "--bn-inception", (r"conv1_7x7_s2\.", r"inception_3a_1x1\."))
RAFT = Kind(
    "torchvision's raft_large",
    "--raft",
    (r"feature_encoder\.convnormrelu\.", r"update_block\.recurrent_block\.convgru2\.", r"mask_predictor\."),
)

KINDS = (
    RMS2SOUND,
    Kind(
        "an AudioLDM checkpoint without RMS-ControlNet",
        None,
        (r"model\.diffusion_model\.", r"cond_stage_models\.|model\.diffusion_model\.film_emb\."),
    ),
    Kind("a latent diffusion checkpoint other than AudioLDM's", None, (r"model\.diffusion_model\.",)),
    VIDEO2RMS,
    Kind("the variant of Video2RMS without LSTM", None, (r"encoder\.MLP\.",)),
    BN_INCEPTION,
    Kind("a BN-Inception checkpoint inside another model", None, (r".+\.inception_3a_1x1\.",)),
    RAFT,
    Kind("torchvision's raft_small", None, (r"feature_encoder\.convnormrelu\.", r"update_block\.")),
    Kind(
        "RAFT as its authors published it, not torchvision's raft_large",
        None,
        (r"(module\.)?fnet\.", r"(module\.)?cnet\."),
    ),
    Kind(
        "diffusers' UNet of AudioLDM",
        None,
        (r"down_blocks\.0\.resnets\.", r"time_embedding\.", r"class_embedding\."),
    ),
    Kind("a UNet of diffusers other than AudioLDM's", None, (r"down_blocks\.0\.resnets\.", r"time_embedding\.")),
    Kind("diffusers' AutoencoderKL", None, (r"decoder\.up_blocks\.", r"post_quant_conv\.")),
    Kind("a VAE of latent diffusion, alone", None, (r"(first_stage_model\.)?decoder\.up\.\d",)),
    Kind("transformers' SpeechT5HifiGan", None, (r"upsampler\.0\.", r"resblocks\.0\.")),
    Kind("HiFi-GAN as its authors published it", None, (r"(generator\.)?ups\.0\.", r"(generator\.)?resblocks\.0\.")),
    Kind("transformers' ClapModel", None, (r"text_model\.|audio_model\.", r"(text|audio)_projection")),
    Kind("CLAP as LAION published it", None, (r"(model\.|module\.)*(text_branch|audio_branch)\.",)),
    Kind("a BERT or RoBERTa model", None, (r"(\w+\.)?encoder\.layer\.0\.attention\.",)),
    Kind("a ResNet", None, (r"layer1\.0\.conv1\.", r"layer4\.0\.conv1\.")),
)
"""More specific kinds come first."""


def recognise(keys: Iterable[str]) -> Kind | None:
    """Return the kind of a state dict with these keys, or None if it is unknown."""
    keys = list(keys)
    for kind in KINDS:
        if all(any(re.match(pattern, key) for key in keys) for pattern in kind.patterns):
            return kind
    return None
