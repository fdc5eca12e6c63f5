"""Envelopes given by the user: a curve file, or the loudness of a recording."""

from pathlib import Path, PurePath

import numpy as np

from foley import clip, envelope_file
from foley.audio import read_sound
from foley.container import DEFAULT_LIMITS, Limits
from foley.envelope import Floats, frames, measure, samples, validate
from foley.envelope_filter import low_pass
from foley.errors import MediaError, SettingError
from foley.media import probe
from foley.options import EnvelopeFilter
from foley_pipeline.paths import file_path
from foley_pipeline.request import EnvelopeInput


def check_filter(path: PurePath | None, envelope_filter: EnvelopeFilter) -> None:
    """Check that `envelope_filter` can be applied to `path`.

    Raises:
        SettingError: There is a filter, but `path` is None or a curve file rather than a recording.
    """
    if envelope_filter != "none" and (path is None or path.suffix.lower() in envelope_file.EXTENSIONS):
        raise SettingError(
            f"envelope_filter is {envelope_filter!r}, which applies to recordings: "
            "give a recording as the envelope, or use no filter"
        )


def read_envelope(
    path: Path | str,
    duration_s: float | None,
    envelope_filter: EnvelopeFilter = "none",
    name: str | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> EnvelopeInput:
    """Read an envelope from a curve file or a recording.

    A curve (.json, .csv) must have as many values as the video has envelope frames. Any other file is decoded as a
    recording, for example of a vocal imitation, and its RMS is measured. A recording shorter than the video is padded
    with silence; a longer one is cut. The audio of a video counts from its first frame.

    Args:
        path: The curve or the recording.
        duration_s: Duration of the video in seconds; None: the duration of the curve or the recording.
        envelope_filter: "official" applies `foley.envelope_filter.low_pass` to the RMS of a recording, and sets
            negative values to 0.
        name: Name for the recipe; None: that of the file.
        limits: Limits on the recording.

    Raises:
        EnvelopeError: The curve is not valid, or the video is too short for the filter.
        MediaError: The recording cannot be read.
        SettingError: There is a filter, but `path` is a curve, or SciPy, which the filter needs, is not installed.
    """
    path = file_path(path, "envelope")
    check_filter(path, envelope_filter)
    source = name or path.name
    if path.suffix.lower() in envelope_file.EXTENSIONS:
        curve = validate(envelope_file.read(path), None if duration_s is None else frames(duration_s))
        length = len(curve) * clip.HOP if duration_s is None else samples(duration_s)
        return EnvelopeInput(curve, length, source)
    recording = _read_recording(path, limits)
    length = len(recording) if duration_s is None else samples(duration_s)
    recording = recording[:length]
    rms = measure(np.pad(recording, (0, length - len(recording))))
    if envelope_filter != "none":
        # The filter can undershoot zero; an RMS is never negative, and the rest of the project rejects negative
        # envelopes.
        rms = np.maximum(low_pass(rms), 0).astype(np.float32)
    return EnvelopeInput(rms, length, source, envelope_filter)


def _read_recording(path: Path, limits: Limits) -> Floats:
    """Read a recording as mono, float32 [samples at 16 kHz]; that of a video from its first frame on."""
    audio = read_sound(path, limits, clip.SAMPLE_RATE_HZ, mono=True)
    try:
        start_s = probe(path, limits).start_s
    except MediaError:  # it is not a video
        start_s = audio.start_s
    return np.asarray(audio.from_time(start_s)[0])
