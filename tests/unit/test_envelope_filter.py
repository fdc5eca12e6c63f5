"""The official low-pass filter of envelopes, and the option that applies it to a recording."""

import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from foley import clip, envelope, envelope_file
from foley.envelope_filter import low_pass
from foley.errors import EnvelopeError, SettingError
from foley_client.curves import read_envelope
from foley_client.render.manifest import read

FRAMES = 200


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """Two seconds of noise with abrupt changes of loudness, after which the filter overshoots."""
    noise = np.random.default_rng(0).standard_normal(FRAMES * clip.HOP) * 0.1
    noise[: FRAMES * clip.HOP // 2] = 0
    soundfile.write(tmp_path / "voice.wav", noise, clip.SAMPLE_RATE_HZ, subtype="FLOAT")
    return tmp_path / "voice.wav"


@settings(deadline=None)  # the first call imports SciPy
@given(level=st.floats(0.01, 1))
def test_constant_level_is_preserved(level):
    np.testing.assert_allclose(low_pass(np.full(clip.CLIP_CLASSES, level)), level, rtol=3e-3)  # twice the ripple


def test_filter_has_no_delay():
    pulse = np.exp(-(((np.arange(401) - 200) / 20) ** 2))
    np.testing.assert_allclose(low_pass(pulse), low_pass(pulse[::-1])[::-1], atol=1e-6)
    assert low_pass(pulse).argmax() == 200


def test_needs_at_least_nine_frames():
    np.testing.assert_allclose(low_pass(np.full(9, 0.5)), 0.5, rtol=5e-3)
    with pytest.raises(EnvelopeError, match="needs at least 9 frames, but the envelope has 8"):
        low_pass(np.full(8, 0.5))


def test_missing_scipy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(SettingError, match=r"needs SciPy: pip install 'foley-core\[filter\]'"):
        low_pass(np.full(100, 0.5))


def test_recording_is_filtered_only_on_request(recording):
    measured = envelope.measure(soundfile.read(recording, dtype="float32")[0])
    np.testing.assert_array_equal(read_envelope(recording, 2.0).envelope, measured)
    filtered = read_envelope(recording, 2.0, "official").envelope
    assert low_pass(measured).min() < 0  # so that the next line tests the lower bound
    np.testing.assert_array_equal(filtered, np.maximum(low_pass(measured), 0).astype(np.float32))
    envelope.validate(filtered, FRAMES)


def test_rejects_filter_for_envelope_file(tmp_path):
    (tmp_path / "curve.csv").write_text(envelope_file.dumps(np.full(FRAMES, 0.1, np.float32), ".csv"))
    with pytest.raises(SettingError, match="applies to recordings"):
        read_envelope(tmp_path / "curve.csv", 2.0, "official")


def test_manifest_rejects_filter_without_recording(tmp_path):
    (tmp_path / "clips.csv").write_text(
        "video,output,envelope,envelope_filter\n"
        "a.mp4,1.mp4,voice.wav,official\n"
        "a.mp4,2.mp4,curve.csv,official\n"
        "a.mp4,3.mp4,,official\n"
        "a.mp4,4.mp4,curve.csv,none\n"
        "a.mp4,5.mp4,voice.wav,gaussian\n"
    )
    with pytest.raises(SettingError) as refused:
        read(tmp_path / "clips.csv")
    faults = str(refused.value).splitlines()[1:]
    assert [fault.partition(":")[0] for fault in faults] == ["line 3", "line 4", "line 6"]
    assert all("applies to recordings" in fault for fault in faults[:2])
    assert "envelope_filter" in faults[2]
