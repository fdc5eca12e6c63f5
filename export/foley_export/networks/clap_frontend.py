"""CLAP audio front end: resample 16 kHz to 48 kHz, log-mel, bicubic resize to [B, 1024, 64].

Implemented with convolutions and sums over constant kernels, which every runtime supports.
"""

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.audio_utils import mel_filter_bank

SAMPLE_RATE_HZ = 48_000
SAMPLES = 10 * SAMPLE_RATE_HZ  # input length of CLAP
FRAMES = 1024  # HTSAT's input length
MEL_BINS = 64


class SincUpsample(nn.Module):
    """Waveform [B, S] -> [B, factor * S] by windowed-sinc interpolation, one filter per phase.

    Equivalent to `torchaudio.functional.resample` with its defaults: Hann window, low-pass filter width 6, roll-off
    0.99.
    """

    kernel: Tensor

    def __init__(self, factor: int, zero_crossings: int = 6, rolloff: float = 0.99) -> None:
        super().__init__()
        self.reach = math.ceil(zero_crossings / rolloff)
        phases = np.arange(factor)[:, None] / factor
        time = rolloff * (np.arange(-self.reach, self.reach + 1) - phases)
        window = np.cos(np.clip(time / zero_crossings, -1, 1) * np.pi / 2) ** 2
        kernel = torch.from_numpy(rolloff * np.sinc(time) * window).float()
        self.register_buffer("kernel", kernel[:, None], persistent=False)

    def forward(self, waveform: Tensor) -> Tensor:
        """Return the upsampled waveform [B, factor * S]."""
        phases = functional.conv1d(waveform[:, None], self.kernel, padding=self.reach)
        return phases.transpose(1, 2).flatten(1)


class LogMel(nn.Module):
    """Waveform [B, S] at 48 kHz -> power in dB in 64 mel bands, [B, 1 + S / 480, 64].

    Equivalent to torchlibrosa as used by LAION's CLAP: periodic Hann window, reflect padding, Slaney mel scale and
    area normalisation from 50 Hz to 14 kHz, floor at -100 dB.
    """

    n_fft = 1024
    hop = 480
    fourier: Tensor  # cosines, then sines: [2 * 513, 1, 1024]
    filters: Tensor  # [513, 64]

    def __init__(self) -> None:
        super().__init__()
        bins = self.n_fft // 2 + 1
        window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(self.n_fft) / self.n_fft)
        angle = 2 * np.pi / self.n_fft * (np.outer(np.arange(bins), np.arange(self.n_fft)) % self.n_fft)
        fourier = np.concatenate([np.cos(angle), np.sin(angle)]) * window
        filters = mel_filter_bank(bins, MEL_BINS, 50.0, 14_000.0, SAMPLE_RATE_HZ, norm="slaney", mel_scale="slaney")
        self.register_buffer("fourier", torch.from_numpy(fourier).float()[:, None], persistent=False)
        self.register_buffer("filters", torch.from_numpy(filters).float(), persistent=False)

    def forward(self, waveform: Tensor) -> Tensor:
        """Return the log-mel spectrogram [B, 1 + S / 480, 64] in dB."""
        margin = self.n_fft // 2
        padded = functional.pad(waveform[:, None], (margin, margin), mode="reflect")
        real, imaginary = functional.conv1d(padded, self.fourier, stride=self.hop).chunk(2, 1)
        mel = (real.square() + imaginary.square()).transpose(1, 2) @ self.filters
        return 10 * mel.clamp(min=1e-10).log10()


class BicubicResize(nn.Module):
    """Spectrogram [B, frames, 64] -> [B, to_frames, 64] by cubic convolution with aligned corners.

    Equivalent to `torch.nn.functional.interpolate(mode="bicubic", align_corners=True)` (Keys 1981, a = -0.75), which
    HTSAT applies to its input; TensorRT has no cubic resize.
    """

    indices: Tensor  # int64 [4, to_frames]: indices of the source frames
    weights: Tensor  # float32 [4, to_frames, 1]: their weights

    def __init__(self, frames: int, to_frames: int) -> None:
        super().__init__()
        positions = np.arange(to_frames, dtype=np.float32) * np.float32(
            (frames - 1) / (to_frames - 1)
        )  # as torch rounds
        indices = np.floor(positions) + np.arange(-1, 3, dtype=np.float32)[:, None]
        weights = _cubic(np.abs(positions - indices))
        self.register_buffer(
            "indices", torch.from_numpy(indices.clip(0, frames - 1).astype(np.int64)), persistent=False
        )
        self.register_buffer("weights", torch.from_numpy(weights).float()[:, :, None], persistent=False)

    def forward(self, spectrogram: Tensor) -> Tensor:
        """Return the resized spectrogram [B, to_frames, 64]."""
        taps = zip(self.indices, self.weights, strict=True)
        return torch.stack([spectrogram.index_select(1, index) * weight for index, weight in taps]).sum(0)


def _cubic(distance: np.ndarray) -> np.ndarray:
    """Return the cubic convolution weights at distances 0 to 2."""
    a = -0.75
    near = (a + 2) * distance**3 - (a + 3) * distance**2 + 1
    far = a * distance**3 - 5 * a * distance**2 + 8 * a * distance - 4 * a
    return np.where(distance <= 1, near, far)
