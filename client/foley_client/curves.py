"""Envelopes that the user brings: a curve in a file, or the loudness of a recording."""

from pathlib import Path, PurePath

import numpy as np

from foley import envelope_file
from foley.audio import read_audio
from foley.envelope import Floats, measure, samples, validate
from foley.envelope_filter import low_pass
from foley.errors import SettingError
from foley.options import EnvelopeFilter


def check_filter(path: PurePath | None, envelope_filter: EnvelopeFilter) -> None:
    """Raise SettingError if there is a filter, but `path` is no recording that it could be applied to."""
    if envelope_filter != "none" and (path is None or path.suffix.lower() in envelope_file.SUFFIXES):
        raise SettingError(
            f"the envelope filter {envelope_filter!r} is for recordings: give one as the envelope, or use no filter"
        )


def read_envelope(path: Path, duration_s: float, frames: int, envelope_filter: EnvelopeFilter = "none") -> Floats:
    """The envelope [frames] in `path` for a video of `duration_s` seconds.

    A curve (.json, .csv) must have exactly that many frames. Anything else is a recording, a mouth noise
    say: its loudness is measured; where it is shorter than the video there is silence, the rest is cut.

    Args:
        path: the curve or the recording; it is only read.
        duration_s: length of the video in seconds.
        frames: envelope frames of the video, 100 a second.
        envelope_filter: "official" applies `foley.envelope_filter.low_pass` to the loudness of a recording, and sets
            negative values to 0.

    Raises:
        EnvelopeError: a curve that cannot be used, or a video that is too short for the filter.
        MediaError: a recording that cannot be read.
        SettingError: a filter for a curve, or SciPy, which the filter needs, is not installed.
    """
    check_filter(path, envelope_filter)
    if path.suffix.lower() in envelope_file.SUFFIXES:
        return validate(envelope_file.read(path), frames)
    length = samples(duration_s)
    recording = read_audio(path)[:length]
    rms = measure(np.pad(recording, (0, length - len(recording))))
    if envelope_filter == "none":
        return rms
    # An RMS is never negative, and no other part of this project accepts negative envelopes.
    return np.maximum(low_pass(rms), 0).astype(np.float32)
