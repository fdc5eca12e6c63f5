"""Envelopes that the user brings: a curve in a file, or the loudness of a recording."""

from pathlib import Path

import numpy as np

from foley import envelope_file
from foley.audio import read_audio
from foley.envelope import Floats, measure, samples, validate


def read_envelope(path: Path, duration_s: float, frames: int) -> Floats:
    """The envelope [frames] in `path` for a video of `duration_s` seconds.

    A curve (.json, .csv) must have exactly that many frames. Anything else is a recording, a mouth noise
    say: its loudness is measured; where it is shorter than the video there is silence, the rest is cut.

    Raises:
        EnvelopeError: a curve that cannot be used.
        MediaError: a recording that cannot be read.
    """
    if path.suffix.lower() in envelope_file.SUFFIXES:
        return validate(envelope_file.read(path), frames)
    length = samples(duration_s)
    recording = read_audio(path)[:length]
    return measure(np.pad(recording, (0, length - len(recording))))
