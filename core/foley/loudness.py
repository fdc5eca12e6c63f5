"""Sets the loudness of the generated sound: to the envelope's mean level, to each envelope frame, or to a peak."""

import numpy as np

from foley import clip
from foley.envelope import Floats, measure
from foley.options import Loudness

OFFICIAL_PEAK = 0.8
_FLOOR = 1e-4  # frames with a lower RMS are silent; bounds the gain, so that silence is not amplified to noise
_MAX_MAKEUP_GAIN = 2.0  # maximum make-up gain after the limiter; more would lose the dynamics
_MAX_ITERATIONS = 8  # maximum iterations of the search for the make-up gain
_BLOCK = 10_000 * clip.HOP  # samples that are processed at once; temporary arrays are larger than the sound


def apply(waveform: Floats, envelope: Floats, loudness: Loudness) -> Floats:
    """Scale a waveform to the requested loudness, within full scale.

    With "level" and "follow", peaks above full scale are limited locally, so that the rest keeps its level.

    Args:
        waveform: float32 [samples at 16 kHz].
        envelope: The requested RMS, float32 [frames at 100 Hz].
        loudness: "level": one gain, so that the mean power of the sound is that of the envelope; the dynamics are the
            model's. "follow": one gain per frame, so that the sound has the requested envelope. "peak": the official
            normalisation to a peak of 0.8, which ignores the envelope.

    Returns:
        The scaled waveform, float32 [samples] in [-1, 1].
    """
    if loudness == "peak":
        return waveform * np.float32(OFFICIAL_PEAK / max(_peak(waveform), _FLOOR))
    produced = measure(waveform)
    wanted = envelope[: len(produced)]
    if loudness == "follow":
        followed = waveform.copy()
        _scale(followed, wanted / np.maximum(produced, _FLOOR))
        limit(followed)
        return followed
    level = _power_mean(wanted)
    gain = level / max(_power_mean(produced), _FLOOR)
    most = gain * _MAX_MAKEUP_GAIN
    louder = np.empty_like(waveform)
    for _ in range(_MAX_ITERATIONS):
        np.multiply(waveform, np.float32(gain), out=louder)
        limit(louder)
        reached = _power_mean(measure(louder))
        if not 0 < reached < 0.999 * level:
            break
        gain = min(gain * level / reached, most)
    return louder


def limit(waveform: Floats) -> None:
    """Attenuate the frames whose peaks exceed full scale, with gain ramps across the neighbouring frames, in place."""
    peaks = np.concatenate([_peaks(waveform[start : start + _BLOCK]) for start in range(0, len(waveform), _BLOCK)])
    gain = 1 / np.maximum(peaks, 1)
    # Between two frame centres the gain is interpolated; the minimum over three frames is low enough everywhere.
    padded = np.pad(gain, 1, mode="edge")
    _scale(waveform, np.minimum.reduce([padded[:-2], gain, padded[2:]]))


def _scale(waveform: Floats, gains: Floats) -> None:
    """Multiply in place by one gain per 10 ms frame, interpolated linearly between frame centres."""
    centres = (np.arange(len(gains)) + 0.5) * clip.HOP
    for start in range(0, len(waveform), _BLOCK):
        block = waveform[start : start + _BLOCK]
        block *= np.interp(np.arange(start, start + len(block)), centres, gains).astype(np.float32)


def _peaks(waveform: Floats) -> Floats:
    """Return the peak of each 10 ms frame."""
    frames = np.pad(np.abs(waveform), (0, -len(waveform) % clip.HOP)).reshape(-1, clip.HOP)
    return np.asarray(frames.max(1))


def _power_mean(envelope: Floats) -> float:
    return float(np.sqrt(np.mean(np.square(envelope))))


def _peak(waveform: Floats) -> float:
    return float(max(waveform.max(initial=0.0), -waveform.min(initial=0.0)))
