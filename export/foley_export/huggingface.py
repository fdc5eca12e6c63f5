"""Maps this project's state-dict keys to those of diffusers' AudioLDM and transformers' CLAP and HiFi-GAN.

Our modules keep the official names (latent diffusion's), which diffusers regroups by kind and level. Checked against
the modules of diffusers 0.42 and transformers 5.23; neither is required here.
"""

import re
from collections.abc import Mapping

from torch import Tensor

from foley.manifest import Manifest

_UNET = {
    r"time_embed\.0\.": "time_embedding.linear_1.",
    r"time_embed\.2\.": "time_embedding.linear_2.",
    r"film_emb\.": "class_embedding.",
    r"input_blocks\.0\.0\.": "conv_in.",
    r"out\.0\.": "conv_norm_out.",
    r"out\.2\.": "conv_out.",
    r"middle_block\.0\.": "mid_block.resnets.0.",
    r"middle_block\.1\.": "mid_block.attentions.0.",
    r"middle_block\.2\.": "mid_block.resnets.1.",
}
_RESIDUAL = {
    "in_layers.0.": "norm1.",
    "in_layers.2.": "conv1.",
    "emb_layers.1.": "time_emb_proj.",
    "out_layers.0.": "norm2.",
    "out_layers.3.": "conv2.",
    "skip_connection.": "conv_shortcut.",
}
_VAE = {
    r"decoder\.mid\.block_1\.": "decoder.mid_block.resnets.0.",
    r"decoder\.mid\.block_2\.": "decoder.mid_block.resnets.1.",
    r"decoder\.mid\.attn_1\.norm\.": "decoder.mid_block.attentions.0.group_norm.",
    r"decoder\.mid\.attn_1\.([qkv])\.": r"decoder.mid_block.attentions.0.to_\1.",
    r"decoder\.mid\.attn_1\.proj_out\.": "decoder.mid_block.attentions.0.to_out.0.",
    r"decoder\.norm_out\.": "decoder.conv_norm_out.",
}
_VAE_ATTENTION = "decoder.mid_block.attentions.0."
_OLD_ATTENTION = {"query.": "to_q.", "key.": "to_k.", "value.": "to_v.", "proj_attn.": "to_out.0."}
_CLAP = {r"text_branch\.": "text_model.", r"audio_branch\.": "audio_model.audio_encoder."}


def unet_key(manifest: Manifest, key: str) -> str | None:
    """Return the key in diffusers' AudioLDM UNet for a key of our `Denoiser`; None for the ControlNet's."""
    part, key = key.split(".", maxsplit=1)
    if part != "unet":
        return None
    a_level = manifest.denoiser.residual_blocks + 1  # blocks per level, in both the down and the up path
    blocks, index, *_ = key.split(".", maxsplit=2)
    if blocks == "input_blocks" and index != "0":
        level, position = divmod(int(index) - 1, a_level)
        return _block_key(f"down_blocks.{level}", position, "downsamplers.0.conv", key)
    if blocks == "output_blocks":
        level, position = divmod(int(index), a_level)
        return _block_key(f"up_blocks.{level}", position, "upsamplers.0.conv", key)
    return _replace(_replace_start(key, _UNET), _RESIDUAL)


def vae_key(manifest: Manifest, key: str) -> str:
    """Return the key in diffusers' AutoencoderKL for a key of our `VaeDecoder`."""
    if found := re.match(r"decoder\.up\.(\d+)\.(.*)", key):
        level = len(manifest.vae_decoder.multipliers) - 1 - int(found[1])  # diffusers counts levels in reverse
        rest = found[2].replace("block.", "resnets.").replace("upsample.", "upsamplers.0.")
        key = f"decoder.up_blocks.{level}.{rest}"
    return _replace_start(key, _VAE).replace("nin_shortcut.", "conv_shortcut.")


def modern_vae(key: str, tensor: Tensor) -> tuple[str, Tensor]:
    """Rename the middle attention as in diffusers 0.16 and later, and reshape its linear layers to 1x1 convolutions."""
    if key.startswith(_VAE_ATTENTION):
        key = _VAE_ATTENTION + _replace_start(key.removeprefix(_VAE_ATTENTION), _OLD_ATTENTION)
        tensor = tensor[:, :, None, None] if tensor.dim() == 2 else tensor
    return key, tensor


def vocoder_key(manifest: Manifest, key: str) -> str:
    """Return the key in transformers' SpeechT5HifiGan for a key of our `Vocoder`."""
    return key.removeprefix("hifigan.")


def clap_key(manifest: Manifest, key: str) -> str:
    """Return the key in transformers' ClapModel for a key of our `ClapText` or `ClapAudio`."""
    return _replace_start(key, _CLAP)


def _block_key(block: str, position: int, resampler: str, key: str) -> str:
    """Return the diffusers key for `key`, `blocks.index.layer.rest`, at `position` among a level's blocks."""
    rest = key.split(".", maxsplit=3)[3]
    if rest.startswith(("op.", "conv.")):
        return f"{block}.{resampler}.{rest.split('.', maxsplit=1)[1]}"
    renamed = _replace_start(rest, _RESIDUAL)
    return f"{block}.{'attentions' if renamed == rest else 'resnets'}.{position}.{renamed}"


def _replace_start(key: str, table: Mapping[str, str]) -> str:
    """Replace the start of `key` by the first matching regular expression in `table`."""
    for pattern, replacement in table.items():
        if re.match(pattern, key):
            return re.sub(pattern, replacement, key, count=1)
    return key


def _replace(key: str, table: Mapping[str, str]) -> str:
    for part, replacement in table.items():
        key = key.replace(part, replacement)
    return key
