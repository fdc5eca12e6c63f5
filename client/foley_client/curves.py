"""Envelopes given by the user: a curve file, or the loudness of a recording."""

from pathlib import Path, PurePath

import numpy as np

from foley import envelope_file
from foley.audio import read_audio
from foley.envelope import Floats, measure, samples, validate
from foley.envelope_filter import low_pass
from foley.errors import SettingError
from foley.options import EnvelopeFilter


def check_filter(path: PurePath | None, envelope_filter: EnvelopeFilter) -> None:
    """Check that `envelope_filter` can be applied to `path`.

    Raises:
        SettingError: There is a filter, but `path` is None or a curve file rather than a recording.
    """
    if envelope_filter != "none" and (path is None or path.suffix.lower() in envelope_file.EXTENSIONS):
        raise SettingError(
            f"the envelope filter {envelope_filter!r} is for recordings: give one as the envelope, or use no filter"
        )


def read_envelope(path: Path, duration_s: float, frames: int, envelope_filter: EnvelopeFilter = "none") -> Floats:
    """Read the envelope for a video from a curve file or a recording.

    A curve (.json, .csv) must have exactly `frames` values. Any other file is decoded as a recording, for example of
    a vocal imitation, and its RMS is measured. A recording shorter than the video is padded with silence; a longer one
    is cut.

    Args:
        path: The curve or the recording.
        duration_s: Duration of the video in seconds.
        frames: Number of envelope frames of the video, 100 per second.
        envelope_filter: "official" applies `foley.envelope_filter.low_pass` to the RMS of a recording, and sets
            negative values to 0.

    Returns:
        RMS values [frames], float32.

    Raises:
        EnvelopeError: The curve is not valid, or the video is too short for the filter.
        MediaError: The recording cannot be read.
        SettingError: There is a filter, but `path` is a curve, or SciPy, which the filter needs, is not installed.
    """
    check_filter(path, envelope_filter)
    if path.suffix.lower() in envelope_file.EXTENSIONS:
        return validate(envelope_file.read(path), frames)
    length = samples(duration_s)
    recording = read_audio(path)[:length]
    rms = measure(np.pad(recording, (0, length - len(recording))))
    if envelope_filter == "none":
        return rms
    # The filter can undershoot zero; an RMS is never negative, and the rest of the project rejects negative envelopes.
    return np.maximum(low_pass(rms), 0).astype(np.float32)
