"""The vocoder: a mel spectrogram to a waveform."""

import math

from torch import Tensor
from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

from foley import clip
from foley.manifest import Manifest
from foley_export.networks.network import Network


class Vocoder(Network):
    """HiFi-GAN (Kong et al., NeurIPS 2020) at 16 kHz, using transformers' equivalent module."""

    stage_name = "vocoder"
    full_precision = frozenset({"hifigan.conv_post"})

    def __init__(self, manifest: Manifest) -> None:
        super().__init__(manifest)
        config = manifest.vocoder
        self.hop = math.prod(config.upsample_rates)
        self.hifigan = SpeechT5HifiGan(
            SpeechT5HifiGanConfig(
                model_in_dim=clip.MEL_BINS,
                sampling_rate=clip.SAMPLE_RATE_HZ,
                upsample_initial_channel=config.width,
                upsample_rates=config.upsample_rates,
                upsample_kernel_sizes=config.upsample_kernels,
                resblock_kernel_sizes=config.resblock_kernels,
                resblock_dilation_sizes=[config.resblock_dilations] * len(config.resblock_kernels),
                leaky_relu_slope=0.1,
                normalize_before=False,
            )
        )
        del self.hifigan.mean, self.hifigan.scale  # used only with normalize_before, and absent from the official files

    @staticmethod
    def checkpoint_key(key: str) -> str:
        """Return the official checkpoint's key for `key`."""
        official = key.removeprefix("hifigan.").replace("upsampler.", "ups.")
        return f"first_stage_model.vocoder.{official}"

    def forward(self, mel: Tensor) -> Tensor:
        """Return the waveform [batch, 160 * frames] in [-1, 1] of a natural-log mel spectrogram [batch, frames, 64]."""
        return self.untrimmed(mel)[:, : mel.shape[1] * self.hop]

    def untrimmed(self, mel: Tensor) -> Tensor:
        """Return the waveform of the official network, which has 32 more samples at the end."""
        return self.hifigan(mel)
