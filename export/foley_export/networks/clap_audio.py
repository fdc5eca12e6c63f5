"""CLAP's audio encoder: HTSAT on a log-mel spectrogram, and a projection into the joint embedding space.

Wu et al., "Large-Scale Contrastive Language-Audio Pretraining" (ICASSP 2023); Chen et al., "HTS-AT"
(ICASSP 2022). The modules are transformers'; checkpoint keys are those of the LAION checkpoint that AudioLDM contains.
"""

import re

from torch import Tensor
from torch.nn import functional
from transformers.models.clap import configuration_clap, modeling_clap

from foley import clip
from foley.manifest import Manifest
from foley_export.networks import clap_frontend
from foley_export.networks.clap_text import CHECKPOINT_PREFIX, projection_key
from foley_export.networks.network import Network

_FUSED = ("query", "key", "value")  # one layer, `qkv`, in the checkpoint
_OFFICIAL_NAMES = {
    r"\.batch_norm\.": ".bn0.",
    r"\.layernorm_before\.": ".norm1.",
    r"\.layernorm_after\.": ".norm2.",
    r"\.attention\.self\.(query|key|value)\.": ".attn.qkv.",
    r"\.attention\.self\.": ".attn.",
    r"\.attention\.output\.dense\.": ".attn.proj.",
    r"\.intermediate\.dense\.": ".mlp.fc1.",
    r"\.output\.dense\.": ".mlp.fc2.",
}


class ClapAudio(Network):
    """Waveform float [B, 163840] at 16 kHz -> unit-length embedding [B, 512]. Only the first 10 s are used."""

    stage_name = "clap_audio"
    full_precision = frozenset({"upsample", "log_mel", "resize"})

    def __init__(self, manifest: Manifest) -> None:
        super().__init__(manifest)
        config = manifest.clap_audio
        settings = configuration_clap.ClapAudioConfig(
            patch_embeds_hidden_size=config.width,
            hidden_size=config.width * 2 ** (len(config.depths) - 1),
            depths=config.depths,
            num_attention_heads=config.heads,
            num_mel_bins=clap_frontend.MEL_BINS,
            projection_dim=clip.EMBEDDING_DIM,
        )
        self.upsample = clap_frontend.SincUpsample(clap_frontend.SAMPLE_RATE_HZ // clip.SAMPLE_RATE_HZ)
        self.log_mel = clap_frontend.LogMel()
        self.resize = clap_frontend.BicubicResize(1 + clap_frontend.SAMPLES // self.log_mel.hop, clap_frontend.FRAMES)
        self.audio_branch = modeling_clap.ClapAudioModel(settings).audio_encoder
        self.audio_projection = modeling_clap.ClapProjectionLayer(settings)

    @staticmethod
    def checkpoint_key(key: str) -> str:
        """Return the official checkpoint's key for `key`."""
        for ours, official in _OFFICIAL_NAMES.items():
            key = re.sub(ours, official, key)
        return CHECKPOINT_PREFIX + projection_key(key)

    def checkpoint_shape(self, key: str) -> tuple[int, ...]:
        """Return the shape in the checkpoint, where query, key and value are one layer."""
        shape = super().checkpoint_shape(key)
        return shape if _fused_part(key) is None else (len(_FUSED) * shape[0], *shape[1:])

    def from_checkpoint(self, key: str, tensor: Tensor) -> Tensor:
        """Convert a tensor: query, key and value are thirds of the official `qkv` layer."""
        part = _fused_part(key)
        return super().from_checkpoint(key, tensor if part is None else tensor.chunk(len(_FUSED))[part])

    def spectrogram(self, waveform: Tensor) -> Tensor:
        """Return the log-mel spectrogram [B, 1001, 64] in dB of the first 10 s of a 16 kHz waveform."""
        return self.log_mel(self.upsample(waveform)[:, : clap_frontend.SAMPLES])

    def forward(self, waveform: Tensor) -> Tensor:
        """Return the unit-length embedding [B, 512] of `waveform`."""
        # resized before the per-band normalisation, officially after it; equivalent, as the resize weights sum to one
        resized = self.resize(self.spectrogram(waveform))
        pooled = self.audio_branch(resized[:, None]).pooler_output
        return functional.normalize(self.audio_projection(pooled), dim=-1)


def _fused_part(key: str) -> int | None:
    """Return which third of the official `qkv` layer `key` is, or None."""
    found = re.search(r"\.attention\.self\.(query|key|value)\.", key)
    return _FUSED.index(found[1]) if found else None
