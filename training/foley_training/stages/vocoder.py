"""The vocoder: HiFi-GAN (Kong et al., NeurIPS 2020) at small scale.

The generator learns from the distance of mel spectrograms at several scales (Kumar et al., "High-Fidelity Audio
Compression with Improved RVQGAN", NeurIPS 2023), and from discriminators that look at spectrograms of three resolutions
(Jang et al., UnivNet, 2021), which are cheaper than HiFi-GAN's on waveforms. Without them noise (water, cloth) would
come out as a buzz. The coarse scales are there for what rings: from a mel that stays the same, transposed convolutions
make a signal that repeats every 10 ms, a tone to the nearest 100 Hz; in narrow bands that costs more than silence.
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
from foley_export.networks.vocoder import Vocoder
from foley_training.config import LoopConfig
from foley_training.loop import Losses, Pass, Task
from foley_training.mel import N_FFT, log_mel, magnitudes, mel_magnitudes
from foley_training.sounds import Sounds

PIECE = 64  # mel frames: 0.64 s
_SCALES = ((1024, 160, 64), (512, 80, 32), (256, 40, 16), (128, 20, 8))  # FFT, hop and bands of a mel spectrogram
_RESOLUTIONS = ((512, 80), (1024, 160), (256, 40))  # FFT and hop of what the discriminators see
_WIDTH = 24  # of a discriminator
_SMALLEST = 1e-2  # magnitude of an STFT: 80 dB under full scale; what is quieter is not heard, nor worth learning
_SMALLEST_MEL = 2e-3  # likewise
_SMALLEST_POWER = 1e-5  # of a frame's mel bands
_MEL, _LOUD, _LOUDNESS, _SPECTRUM, _LIKENESS = 6.0, 2.0, 1.0, 4.0, 1.0  # weights beside the discriminators' verdict
_AVERAGE_MEL, _SPREAD = -6.0, 3.0  # about, of a log-mel where something sounds
_ALONE = 0.6  # share of the steps before the discriminators join: spectra come first, and cost half


@dataclass(frozen=True)
class Piece:
    """Log-mel [batch, 64, 64] and the waveform [batch, 10240] that it was made of."""

    mel: Tensor
    waveform: Tensor


class VocoderTask(Task[Piece]):
    """Generator and discriminators, in turns."""

    name = "vocoder"

    def __init__(self, manifest: Manifest, config: LoopConfig, train: Sounds, validation: Sounds) -> None:
        super().__init__()
        self.config, self.train_set, self.validation_set = config, train, validation
        self.vocoder = Vocoder(manifest)
        self.vocoder.apply(_wake)
        with torch.no_grad():
            # a waveform that begins outside of tanh's range is stuck there
            self.vocoder.hifigan.get_parameter("conv_post.weight").mul_(0.1)
        self.discriminators = nn.ModuleList(Discriminator() for _ in _RESOLUTIONS)
        self.networks = nn.ModuleDict({"vocoder": self.vocoder, "discriminators": self.discriminators})
        self.passes = [
            Pass(self.discriminators, self.discriminator_losses, betas=(0.5, 0.9)),
            Pass(self.vocoder, self.generator_losses, betas=(0.8, 0.99)),
        ]

    @torch.no_grad()
    def folded(self) -> Vocoder:
        """What is learned, as a vocoder of a log-mel as it is."""
        vocoder = deepcopy(self.vocoder)
        for name, value in self._first_layer().items():
            vocoder.get_parameter(name).copy_(value)
        return vocoder

    def _first_layer(self) -> dict[str, Tensor]:
        """The first convolution's parameters; those that are learned are for a log-mel of zero mean and unit spread.

        From the log-mel itself, three times as far from zero as it spreads, 2,000 steps do not teach tones.
        """
        names = ("hifigan.conv_pre.weight", "hifigan.conv_pre.bias")
        learned, bias = (self.vocoder.get_parameter(name) for name in names)
        weight = learned / _SPREAD
        return dict(zip(names, (weight, bias - _AVERAGE_MEL * weight.sum((1, 2))), strict=True))

    def sound(self, mel: Tensor) -> Tensor:
        """The waveform [batch, samples] of a log-mel, with gradients for what is learned."""
        sound: Tensor = functional_call(self.vocoder, self._first_layer(), mel)
        return sound.float()

    def batch(self, random: np.random.Generator) -> Piece:
        mels, waves = [], []
        for _ in range(self.config.batch):
            index, first = self.train_set.piece(random, PIECE)
            mels.append(self.train_set.mels[index, first : first + PIECE].astype(np.float32))
            waves.append(self.train_set.waveform(index)[first * clip.HOP : (first + PIECE) * clip.HOP])
        return Piece(*(torch.from_numpy(np.stack(part)).to(self.device) for part in (mels, waves)))

    def discriminator_losses(self, piece: Piece) -> Losses:
        if self.progress < _ALONE:
            return {}
        with torch.no_grad():
            made = self.sound(piece.mel)
        verdicts = zip(self._look(piece.waveform), self._look(made), strict=True)
        wrong = [(1 - real[-1]).square().mean() + fake[-1].square().mean() for real, fake in verdicts]
        return {"discriminator": torch.stack(wrong).mean()}

    def generator_losses(self, piece: Piece) -> Losses:
        made = self.sound(piece.mel)
        errors = [_audible_error(made, piece.waveform, *scale) for scale in _SCALES]
        # a tone is loud in few bands: the mean over all of them hardly misses it, the ear does
        mel = mel_magnitudes(piece.waveform)
        share = mel / (mel.sum(-1, keepdim=True) + _SMALLEST)
        # no mel band reaches down to 0 Hz, where a waveform could hide an offset
        spectra = [_log_magnitudes(waveform, N_FFT, clip.HOP) for waveform in (made, piece.waveform)]
        losses = {
            "mel": _MEL * torch.stack([error.mean() for error in errors]).mean(),
            "loud": _LOUD * (share * errors[0]).sum(-1).mean(),
            "loudness": _LOUDNESS * (_loudness(mel_magnitudes(made)) - _loudness(mel)).abs().mean(),
            "spectrum": _SPECTRUM * (spectra[0] - spectra[1]).abs().mean(),
        }
        return losses if self.progress < _ALONE else {**losses, **self._verdict(made, piece.waveform)}

    def _verdict(self, made: Tensor, real: Tensor) -> Losses:
        """How far the discriminators are from taking `made` for real, and from seeing what they see in `real`."""
        self.discriminators.requires_grad_(False)
        with torch.no_grad():
            reals = self._look(real)
        fakes = self._look(made)
        self.discriminators.requires_grad_(True)
        fooled = torch.stack([(1 - fake[-1]).square().mean() for fake in fakes]).mean()
        likeness = torch.stack(
            [
                (a - b).abs().mean() / a.abs().mean().clamp(min=1e-3)
                for real, fake in zip(reals, fakes, strict=True)
                for a, b in zip(real[:-1], fake[:-1], strict=True)
            ]
        ).mean()
        return {"likeness": _LIKENESS * likeness, "fooled": fooled}

    def _look(self, waveform: Tensor) -> list[list[Tensor]]:
        return [
            discriminator(_log_magnitudes(waveform, *size))
            for discriminator, size in zip(self.discriminators, _RESOLUTIONS, strict=True)
        ]

    def validate(self) -> dict[str, float]:
        """Mean absolute error of the log-mel of what is sounded, over 40 clips."""
        errors = []
        for mel in self.validation_set.mels[:40]:
            target = torch.from_numpy(mel.astype(np.float32))[None].to(self.device)
            errors.append(float((log_mel(self.sound(target)) - target).abs().mean()))
        return {"mel_error": float(np.mean(errors))}


def _wake(module: nn.Module) -> None:
    """Weights that keep a signal's size: transformers' own start, 0.01, lets it die out in narrow layers."""
    if isinstance(module, nn.Conv1d | nn.ConvTranspose1d):
        fan_in = module.in_channels * module.kernel_size[0] / (module.stride[0] if module.transposed else 1)
        nn.init.normal_(module.weight, std=fan_in**-0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class Discriminator(nn.Module):
    """Log magnitudes [batch, 1, bins, frames] -> the maps of every layer, the verdict last (1: real)."""

    def __init__(self) -> None:
        super().__init__()
        strides = ((2, 1), (2, 2), (2, 1), (2, 2))
        widths = (1, *[_WIDTH] * len(strides))
        self.layers = nn.ModuleList(
            nn.utils.parametrizations.weight_norm(nn.Conv2d(a, b, (5, 3), stride, padding=(2, 1)))
            for a, b, stride in zip(widths, widths[1:], strides, strict=False)
        )
        self.verdict = nn.Conv2d(_WIDTH, 1, 3, padding=1)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for layer in self.layers:
            x = functional.leaky_relu(layer(x), 0.1)
            maps.append(x)
        return [*maps, self.verdict(x)]


def _log_magnitudes(waveform: Tensor, n_fft: int, hop: int) -> Tensor:
    return (magnitudes(waveform, n_fft, hop) + _SMALLEST).log()[:, None] / 4


def _audible_error(made: Tensor, real: Tensor, n_fft: int, hop: int, bands: int) -> Tensor:
    """The absolute errors of log-mels, [batch, frames, bands]; what is not audible is all the same."""
    made, real = (mel_magnitudes(waveform, n_fft, hop, bands) for waveform in (made, real))
    return ((made + _SMALLEST_MEL).log() - (real + _SMALLEST_MEL).log()).abs()


def _loudness(mel: Tensor) -> Tensor:
    """The logarithm of each frame's root of the power, [batch, frames]."""
    return (mel.square().sum(-1) + _SMALLEST_POWER).log() / 2
