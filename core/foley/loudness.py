"""How loud the finished sound is: at the envelope's level, exactly on the envelope, or at a fixed peak."""

import numpy as np

from foley import clip
from foley.envelope import Floats, measure
from foley.options import Loudness

OFFICIAL_PEAK = 0.8
_FLOOR = 1e-4  # RMS under which a frame counts as silent: nothing is amplified out of it
_MAKE_UP = 2.0  # the most gain that makes up for what the limiter takes; beyond it, dynamics would be lost
_ROUNDS = 8  # of finding that gain


def apply(waveform: Floats, envelope: Floats, loudness: Loudness) -> Floats:
    """`waveform` [samples at 16 kHz] made as loud as `loudness` says, never past full scale.

    - "level": one gain, so that the sound's RMS over time is the envelope's; dynamics stay the model's.
    - "follow": a gain per frame, so that the sound's envelope becomes the requested one.
    - "peak": the official normalisation, divided by the peak, times 0.8; the envelope's level is lost.

    Peaks that would pass full scale are limited where they are, so that the rest keeps its level.
    """
    if loudness == "peak":
        return waveform * np.float32(OFFICIAL_PEAK / max(_peak(waveform), _FLOOR))
    produced = measure(waveform)
    wanted = envelope[: len(produced)]
    if loudness == "follow":
        return limit(waveform * _per_sample(wanted / np.maximum(produced, _FLOOR), len(waveform)))
    level = _power_mean(wanted)
    gain = level / max(_power_mean(produced), _FLOOR)
    most = gain * _MAKE_UP
    for _ in range(_ROUNDS):
        louder = limit(waveform * np.float32(gain))
        reached = _power_mean(measure(louder))
        if not 0 < reached < 0.999 * level:
            break
        gain = min(gain * level / reached, most)
    return louder


def limit(waveform: Floats) -> Floats:
    """`waveform` with the frames whose peaks pass full scale turned down, and their neighbours on the way there."""
    frames = np.pad(np.abs(waveform), (0, -len(waveform) % clip.HOP)).reshape(-1, clip.HOP)
    gain = 1 / np.maximum(frames.max(1), 1)
    # between two frames' centres the gain is between theirs: the least of three neighbours is low enough everywhere
    padded = np.pad(gain, 1, mode="edge")
    return waveform * _per_sample(np.minimum.reduce([padded[:-2], gain, padded[2:]]), len(waveform))


def _per_sample(frames: Floats, samples: int) -> Floats:
    """One value a frame of 10 ms as one a sample, straight lines from centre to centre."""
    centres = (np.arange(len(frames)) + 0.5) * clip.HOP
    return np.interp(np.arange(samples), centres, frames).astype(np.float32)


def _power_mean(envelope: Floats) -> float:
    return float(np.sqrt(np.mean(np.square(envelope))))


def _peak(waveform: Floats) -> float:
    return float(np.abs(waveform).max(initial=0.0))
