"""How loud the finished sound is: at the envelope's level, exactly on the envelope, or at a fixed peak."""

from typing import Literal, get_args

import numpy as np

from foley import clip
from foley.envelope import Floats, measure

Loudness = Literal["level", "follow", "peak"]
LOUDNESS: tuple[Loudness, ...] = get_args(Loudness)

OFFICIAL_PEAK = 0.8
_FLOOR = 1e-4  # RMS under which a frame counts as silent: nothing is amplified out of it


def apply(waveform: Floats, envelope: Floats, loudness: Loudness) -> Floats:
    """`waveform` [samples at 16 kHz] made as loud as `loudness` says, never past full scale.

    - "level": one gain, so that the sound's RMS over time is the envelope's; dynamics stay the model's.
    - "follow": a gain per frame, so that the sound's envelope becomes the requested one.
    - "peak": the official normalisation, divided by the peak, times 0.8; the envelope's level is lost.
    """
    if loudness == "peak":
        return waveform * np.float32(OFFICIAL_PEAK / max(_peak(waveform), _FLOOR))
    produced = measure(waveform)
    wanted = envelope[: len(produced)]
    if loudness == "level":
        level = np.sqrt(np.mean(np.square(produced)))
        scaled = waveform * np.float32(np.sqrt(np.mean(np.square(wanted))) / max(level, _FLOOR))
    else:
        gain = wanted / np.maximum(produced, _FLOOR)
        centres = (np.arange(len(gain)) + 0.5) * clip.HOP
        scaled = waveform * np.interp(np.arange(len(waveform)), centres, gain).astype(np.float32)
    return scaled / max(1.0, _peak(scaled))


def _peak(waveform: Floats) -> float:
    return float(np.abs(waveform).max(initial=0.0))
