"""RMS envelopes: the loudness of a sound over time.

An envelope is a float32 array of linear RMS amplitudes at `clip.ENVELOPE_RATE_HZ` (100 Hz), one frame per `clip.HOP`
(160) samples of 16 kHz audio.
"""

import numpy as np
import numpy.typing as npt

from foley import clip
from foley.errors import EnvelopeError

Floats = npt.NDArray[np.float32]

MU = 63.0  # mu-law parameter of Video2RMS' loudness classes (paper, section III-A)
QUIETEST = 0.01  # upper bound of the RMS of class 0, silence

_FRAMES_AT_ONCE = 4096


def frames(duration_s: float) -> int:
    """Return the number of envelope frames that cover `duration_s` seconds of sound."""
    return max(1, -(-samples(duration_s) // clip.HOP))


def samples(duration_s: float, rate_hz: int = clip.SAMPLE_RATE_HZ) -> int:
    """Return the number of samples of a sound as long as a video of `duration_s` seconds."""
    return round(duration_s * rate_hz)


def measure(waveform: Floats, frame_length: int = 1024, hop: int = clip.HOP) -> Floats:
    """Measure the RMS envelope of a waveform as the official code does.

    Frames are centred; the edges are padded by reflecting (frame_length - hop) / 2 samples. The defaults are those of
    RMS2Sound (1024 / 160 at 16 kHz); Video2RMS was trained with 512 / 128.

    Args:
        waveform: float32 [samples].
        frame_length: Samples per frame.
        hop: Samples between frames.

    Returns:
        Linear RMS, float32 [ceil(samples / hop)].

    Raises:
        EnvelopeError: The waveform is empty.
    """
    wave = np.asarray(waveform, np.float32)
    if wave.size == 0:
        raise EnvelopeError("the sound has no samples; give a sound with at least one sample")
    power = np.empty(-(-wave.size // hop), np.float32)
    margin = (frame_length - hop) // 2
    for first in range(0, len(power), _FRAMES_AT_ONCE):  # all windows at once take several times the memory of a sound
        last = min(first + _FRAMES_AT_ONCE, len(power)) - 1
        samples = _padded(wave, len(power) * hop, first * hop - margin, last * hop - margin + frame_length)
        windows = np.lib.stride_tricks.sliding_window_view(samples, frame_length)[::hop]
        power[first : last + 1] = np.mean(np.square(windows), axis=1, dtype=np.float32)
    return np.sqrt(power)


def _padded(wave: Floats, length: int, start: int, end: int) -> Floats:
    """Return the samples from `start` to `end` of `wave`, zero-padded to `length` and then reflected at both ends."""
    if start >= 0 and end <= len(wave):
        return wave[start:end]
    period = max(1, 2 * (length - 1))
    index = np.arange(start, end) % period
    index = np.minimum(index, period - index)
    return np.where(index < len(wave), wave[np.minimum(index, len(wave) - 1)], np.float32(0))


def mu_law(amplitude: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Convert linear amplitudes in [0, 1] to mu-law (mu = 63) in [0, 1]."""
    return np.asarray(np.log1p(MU * np.asarray(amplitude, np.float64)) / np.log1p(MU))


def mu_law_bins(classes: int = 64) -> Floats:
    """Return the upper bound of each class in linear RMS, float32 [classes].

    Bounds are equally spaced in mu-law from 0.01 to 1. Intermediate results are rounded to float32 as in the official
    code, so that the table is bit-identical.
    """
    one, mu = np.float32(1), np.float32(MU)
    log_mu = np.float32(np.log1p(MU))
    lowest = np.float32(np.log(np.float64(one + mu * np.float32(QUIETEST)))) / log_mu
    law = np.linspace(float(lowest), 1.0, classes).astype(np.float32)
    bins: Floats = (np.exp(law * log_mu, dtype=np.float64).astype(np.float32) - one) / mu
    return bins


def class_levels(classes: int = 64) -> Floats:
    """Return the linear RMS that each class is decoded to, float32 [classes]: its upper bound; 0 for class 0."""
    levels = mu_law_bins(classes)
    levels[0] = 0.0
    return levels


def validate(values: npt.ArrayLike, expected_frames: int | None = None) -> Floats:
    """Convert `values` to an envelope, float32 [frames].

    Raises:
        EnvelopeError: The values are not one-dimensional, empty, not finite, negative, or not `expected_frames` long.
    """
    try:
        with np.errstate(over="ignore"):  # values that overflow float32 become infinite and are refused below
            envelope = np.asarray(values, np.float32)
    except (TypeError, ValueError, OverflowError) as error:
        raise EnvelopeError("an envelope must be a list of numbers, the RMS values") from error
    if envelope.ndim != 1 or envelope.size == 0:
        raise EnvelopeError("an envelope must be a list of at least one RMS value")
    if not np.isfinite(envelope).all():
        index = int(np.flatnonzero(~np.isfinite(envelope))[0])
        raise EnvelopeError(f"frame {index} of the envelope is not finite; use finite numbers")
    if (envelope < 0).any():
        index = int(np.flatnonzero(envelope < 0)[0])
        raise EnvelopeError(f"frame {index} of the envelope is negative; RMS values are 0 or more")
    if expected_frames is not None and envelope.size != expected_frames:
        raise EnvelopeError(
            f"the envelope has {envelope.size} frames, the video needs {expected_frames} "
            f"({clip.ENVELOPE_RATE_HZ} per second)"
        )
    return envelope
