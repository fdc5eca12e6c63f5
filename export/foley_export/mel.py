"""AudioLDM's log-mel spectrogram: the VAE's and the vocoder's representation of sound.

Official behaviour (`../shared/reference/README.md`, items 13 and 39): 16 kHz, FFT 1024, hop 160, 64 Slaney mel bands
from 0 to 8 kHz, natural log of the magnitude, clamped at 1e-5; reflect padding, so that a frame is centred on its 160
samples.
"""

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional
from transformers.audio_utils import mel_filter_bank

from foley import clip

N_FFT = 1024
_MIN_MAGNITUDE = 1e-5


def log_mel(waveform: Tensor) -> Tensor:
    """Return the log-mel [batch, samples / 160, 64] of 16 kHz waveforms [batch, samples]; 160 must divide `samples`."""
    return mel_magnitudes(waveform).clamp(min=_MIN_MAGNITUDE).log()


def mel_magnitudes(waveform: Tensor, n_fft: int = N_FFT, hop: int = clip.HOP, bands: int = clip.MEL_BINS) -> Tensor:
    """Return the magnitudes in mel bands, before the logarithm: [batch, samples / hop, bands]."""
    return magnitudes(waveform, n_fft, hop).transpose(1, 2) @ filters(n_fft, bands, waveform.device)


def magnitudes(waveform: Tensor, n_fft: int, hop: int) -> Tensor:
    """Return the magnitude spectrogram [batch, n_fft / 2 + 1, samples / hop]; differentiable at silence."""
    padding = (n_fft - hop) // 2
    padded = functional.pad(waveform[:, None], (padding, padding), mode="reflect")[:, 0]
    window = torch.hann_window(n_fft, device=waveform.device)
    spectrum = torch.stft(padded, n_fft, hop, window=window, center=False, return_complex=True)
    return (spectrum.real.square() + spectrum.imag.square() + 1e-12).sqrt()


@cache
def filters(n_fft: int = N_FFT, bands: int = clip.MEL_BINS, device: torch.device | None = None) -> Tensor:
    """Return mel filters [n_fft / 2 + 1, bands], 0 to 8 kHz; Slaney scale and area normalisation, as in librosa."""
    bank = mel_filter_bank(n_fft // 2 + 1, bands, 0.0, clip.SAMPLE_RATE_HZ / 2, clip.SAMPLE_RATE_HZ, "slaney", "slaney")
    return torch.from_numpy(bank).float().to(device)
