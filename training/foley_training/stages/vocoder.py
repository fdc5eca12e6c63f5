"""The vocoder: HiFi-GAN (Kong et al., NeurIPS 2020) at small scale.

The generator minimises the distance of mel spectrograms at several scales (Kumar et al., "High-Fidelity Audio
Compression with Improved RVQGAN", NeurIPS 2023) and an adversarial loss from discriminators on spectrograms of three
resolutions (Jang et al., UnivNet, 2021), which are cheaper than HiFi-GAN's on waveforms. Without discriminators, noise
(water, cloth) becomes a buzz. The coarse scales are for ringing sounds: from a constant mel, transposed convolutions
make a signal with a period of 10 ms, i.e. tones at multiples of 100 Hz; in narrow bands that costs more than silence.
"""

from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from foley import clip
from foley.manifest import Manifest
from foley_export.mel import N_FFT, log_mel, magnitudes, mel_magnitudes
from foley_export.networks.vocoder import Vocoder
from foley_training.config import LoopConfig
from foley_training.loop import Losses, Pass, Task
from foley_training.sounds import Sounds

CROP_FRAMES = 64  # mel frames: 0.64 s
_SCALES = ((1024, 160, 64), (512, 80, 32), (256, 40, 16), (128, 20, 8))  # FFT, hop and bands of a mel spectrogram
_RESOLUTIONS = ((512, 80), (1024, 160), (256, 40))  # FFT and hop of the discriminators' spectrograms
_WIDTH = 24  # channels of a discriminator
_MIN_MAGNITUDE = 1e-2  # STFT magnitude 80 dB below full scale; quieter values are inaudible and not trained on
_MIN_MEL = 2e-3  # the same for mel magnitudes
_MIN_POWER = 1e-5  # the same for the power of a frame's mel bands
# loss weights; the adversarial loss has weight 1
_MEL, _LOUD, _LOUDNESS, _SPECTRUM, _FEATURE_MATCHING = 6.0, 2.0, 1.0, 4.0, 1.0
_MEL_MEAN, _MEL_STD = -6.0, 3.0  # approximate mean and standard deviation of a log-mel during sound
GAN_START = 0.6  # fraction of the steps after which the discriminators join; without them a step costs half


@dataclass(frozen=True)
class Crop:
    """Log-mel [batch, 64, 64] and the waveform [batch, 10240] that it was computed from."""

    mel: Tensor
    waveform: Tensor


class VocoderTask(Task[Crop]):
    """Generator and discriminators, updated alternately."""

    name = "vocoder"

    def __init__(self, manifest: Manifest, config: LoopConfig, train: Sounds, validation: Sounds) -> None:
        super().__init__()
        self.config, self.train_set, self.validation_set = config, train, validation
        self.vocoder = Vocoder(manifest)
        self.vocoder.apply(init_weights)
        with torch.no_grad():
            # small initial outputs, because tanh saturates and its gradients vanish
            self.vocoder.hifigan.get_parameter("conv_post.weight").mul_(0.1)
        self.discriminators = nn.ModuleList(Discriminator() for _ in _RESOLUTIONS)
        self.networks = nn.ModuleDict({"vocoder": self.vocoder, "discriminators": self.discriminators})
        self.passes = [
            Pass(self.discriminators, self.discriminator_losses, betas=(0.5, 0.9)),
            Pass(self.vocoder, self.generator_losses, betas=(0.8, 0.99)),
        ]

    @torch.no_grad()
    def folded(self) -> Vocoder:
        """Return the trained vocoder with the input normalisation folded into its first layer."""
        vocoder = deepcopy(self.vocoder)
        for name, value in self._denormalised_conv_pre().items():
            vocoder.get_parameter(name).copy_(value)
        return vocoder

    def _denormalised_conv_pre(self) -> dict[str, Tensor]:
        """Return the first convolution's parameters for a raw log-mel.

        The trained parameters are for a log-mel normalised to zero mean and unit standard deviation. With the raw
        log-mel, whose distance from zero is three times its deviation, 2,000 steps do not suffice to learn tones.
        """
        names = ("hifigan.conv_pre.weight", "hifigan.conv_pre.bias")
        normalised, bias = (self.vocoder.get_parameter(name) for name in names)
        weight = normalised / _MEL_STD
        return dict(zip(names, (weight, bias - _MEL_MEAN * weight.sum((1, 2))), strict=True))

    def sound(self, mel: Tensor) -> Tensor:
        """Return the waveform [batch, samples] of a log-mel, differentiable with respect to the trained parameters."""
        sound: Tensor = functional_call(self.vocoder, self._denormalised_conv_pre(), mel)
        return sound.float()

    def batch(self, random: np.random.Generator) -> Crop:
        """Return random pieces of clips."""
        mels, waves = [], []
        for _ in range(self.config.batch):
            index, first = self.train_set.random_crop(random, CROP_FRAMES)
            mels.append(self.train_set.mels[index, first : first + CROP_FRAMES].astype(np.float32))
            waves.append(self.train_set.waveform(index)[first * clip.HOP : (first + CROP_FRAMES) * clip.HOP])
        return Crop(*(torch.from_numpy(np.stack(part)).to(self.device) for part in (mels, waves)))

    def discriminator_losses(self, crop: Crop) -> Losses:
        """Return the least-squares discriminator loss; empty before the adversarial phase."""
        if self.progress < GAN_START:
            return {}
        with torch.no_grad():
            generated = self.sound(crop.mel)
        scores = zip(self._discriminate(crop.waveform), self._discriminate(generated), strict=True)
        errors = [(1 - real[-1]).square().mean() + fake[-1].square().mean() for real, fake in scores]
        return {"discriminator": torch.stack(errors).mean()}

    def generator_losses(self, crop: Crop) -> Losses:
        """Return the spectral losses and, in the adversarial phase, the adversarial and feature-matching losses."""
        generated = self.sound(crop.mel)
        errors = [_audible_error(generated, crop.waveform, *scale) for scale in _SCALES]
        # a tone is loud in few bands and has little weight in the mean over bands, but its absence is audible
        mel = mel_magnitudes(crop.waveform)
        weight = mel / (mel.sum(-1, keepdim=True) + _MIN_MAGNITUDE)
        # no mel band covers 0 Hz: a linear spectrum is needed to penalise a DC offset
        spectra = [_log_magnitudes(waveform, N_FFT, clip.HOP) for waveform in (generated, crop.waveform)]
        losses = {
            "mel": _MEL * torch.stack([error.mean() for error in errors]).mean(),
            "loud": _LOUD * (weight * errors[0]).sum(-1).mean(),
            "loudness": _LOUDNESS * (_loudness(mel_magnitudes(generated)) - _loudness(mel)).abs().mean(),
            "spectrum": _SPECTRUM * (spectra[0] - spectra[1]).abs().mean(),
        }
        return losses if self.progress < GAN_START else {**losses, **self._adversarial_losses(generated, crop.waveform)}

    def _adversarial_losses(self, generated: Tensor, real: Tensor) -> Losses:
        """Return the generator's adversarial loss and the feature-matching loss."""
        self.discriminators.requires_grad_(False)
        with torch.no_grad():
            reals = self._discriminate(real)
        fakes = self._discriminate(generated)
        self.discriminators.requires_grad_(True)
        generator_loss = torch.stack([(1 - fake[-1]).square().mean() for fake in fakes]).mean()
        feature_matching_loss = torch.stack(
            [
                (a - b).abs().mean() / a.abs().mean().clamp(min=1e-3)
                for real, fake in zip(reals, fakes, strict=True)
                for a, b in zip(real[:-1], fake[:-1], strict=True)
            ]
        ).mean()
        return {"feature_matching": _FEATURE_MATCHING * feature_matching_loss, "adversarial": generator_loss}

    def _discriminate(self, waveform: Tensor) -> list[list[Tensor]]:
        return [
            discriminator(_log_magnitudes(waveform, *size))
            for discriminator, size in zip(self.discriminators, _RESOLUTIONS, strict=True)
        ]

    def validate(self) -> dict[str, float]:
        """Return the mean absolute error of the log-mel of generated waveforms, over 40 clips."""
        errors = []
        for mel in self.validation_set.mels[:40]:
            target = torch.from_numpy(mel.astype(np.float32))[None].to(self.device)
            errors.append(float((log_mel(self.sound(target)) - target).abs().mean()))
        return {"mel_error": float(np.mean(errors))}


def init_weights(module: nn.Module) -> None:
    """Initialise weights to preserve the signal's variance.

    transformers' default standard deviation, 0.01, makes the signal vanish in narrow layers.
    """
    if isinstance(module, nn.Conv1d | nn.ConvTranspose1d):
        fan_in = module.in_channels * module.kernel_size[0] / (module.stride[0] if module.transposed else 1)
        nn.init.normal_(module.weight, std=fan_in**-0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class Discriminator(nn.Module):
    """Log magnitudes [batch, 1, bins, frames] -> feature maps of every layer; the last one is the score (1: real)."""

    def __init__(self) -> None:
        super().__init__()
        strides = ((2, 1), (2, 2), (2, 1), (2, 2))
        widths = (1, *[_WIDTH] * len(strides))
        self.layers = nn.ModuleList(
            nn.utils.parametrizations.weight_norm(nn.Conv2d(a, b, (5, 3), stride, padding=(2, 1)))
            for a, b, stride in zip(widths, widths[1:], strides, strict=False)
        )
        self.conv_post = nn.Conv2d(_WIDTH, 1, 3, padding=1)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the feature maps and the score."""
        maps = []
        for layer in self.layers:
            x = functional.leaky_relu(layer(x), 0.1)
            maps.append(x)
        return [*maps, self.conv_post(x)]


def _log_magnitudes(waveform: Tensor, n_fft: int, hop: int) -> Tensor:
    return (magnitudes(waveform, n_fft, hop) + _MIN_MAGNITUDE).log()[:, None] / 4


def _audible_error(generated: Tensor, real: Tensor, n_fft: int, hop: int, bands: int) -> Tensor:
    """Return the absolute errors of log-mels, [batch, frames, bands]; differences below audibility are ignored."""
    generated, real = (mel_magnitudes(waveform, n_fft, hop, bands) for waveform in (generated, real))
    return ((generated + _MIN_MEL).log() - (real + _MIN_MEL).log()).abs()


def _loudness(mel: Tensor) -> Tensor:
    """Return the log of the root of each frame's power, [batch, frames]."""
    return (mel.square().sum(-1) + _MIN_POWER).log() / 2
