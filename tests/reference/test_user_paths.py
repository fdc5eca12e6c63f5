"""The official vectors through the public functions, which read files."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import soundfile

from foley import clip
from foley.options import EnvelopeFilter
from foley_bench.baseline.images import flow_through_jpeg, through_jpeg
from foley_client.curves import read_envelope


@pytest.mark.parametrize("envelope_filter", ["none", "official"])
def test_envelope_of_recording_matches_official(vectors, tmp_path: Path, envelope_filter: EnvelopeFilter):
    """The filtered envelope is the official one with negative values set to 0."""
    vector = vectors["envelope_from_audio"]
    waveform = vector["waveform"].astype(np.float32)
    soundfile.write(tmp_path / "voice.wav", waveform, clip.SAMPLE_RATE_HZ, subtype="FLOAT")
    found = read_envelope(tmp_path / "voice.wav", len(waveform) / clip.SAMPLE_RATE_HZ, envelope_filter).envelope
    official = vector["rms_1024_160"] if envelope_filter == "none" else np.maximum(vector["envelope"][0], 0)
    assert np.linalg.norm(found - official) < 1e-6 * np.linalg.norm(official)


def assert_same_decoding(found: npt.NDArray[np.uint8], official: npt.NDArray[np.uint8]) -> None:
    """Versions of libjpeg differ by one level in a few values."""
    difference = np.abs(found.astype(int) - official)
    assert difference.max() <= 1
    assert difference.mean() < 0.02


def test_jpeg_round_trip_matches_official(vectors):
    vector = vectors["jpeg_round_trip"]
    assert_same_decoding(through_jpeg(vector["frames"][:1])[0], vector["frames_after_jpeg"][0])
    flow, official = (np.moveaxis(vector[name][0], 0, 2) for name in ("flow_uint8", "flow_after_jpeg"))
    assert_same_decoding(flow_through_jpeg(flow[None])[0], official)
