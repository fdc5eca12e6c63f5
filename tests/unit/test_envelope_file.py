"""Envelope files round-trip, and invalid files raise only EnvelopeError."""

import json
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foley import envelope_file
from foley.errors import EnvelopeError

curves = st.lists(st.floats(0, 4, width=32), min_size=1, max_size=300)
suffixes = st.sampled_from(envelope_file.EXTENSIONS)


def read_bytes(content: bytes, suffix: str) -> np.ndarray:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"curve{suffix}"
        path.write_bytes(content)
        return envelope_file.read(path)


@given(curve=curves, suffix=suffixes)
@settings(deadline=None, max_examples=100)
def test_round_trip(curve, suffix):
    envelope = np.array(curve, np.float32)
    text = envelope_file.dumps(envelope, suffix)
    restored = read_bytes(text.encode(), suffix)
    assert restored.dtype == np.float32
    np.testing.assert_allclose(restored, envelope, rtol=1e-6, atol=5.1e-7)
    assert envelope_file.dumps(restored, suffix) == text  # stable after the first round trip


@pytest.mark.parametrize(
    ("content", "suffix"),
    [
        ('{"rate_hz": 100, "rms": [0, 0.5, 1]}', ".json"),
        ('{"rms": [0, 0.5, 1.0], "rate_hz": 100.0, "note": "drawn by hand"}', ".JSON"),
        ("time_s,rms\n0,0\n0.01,0.5\n0.02,1\n", ".csv"),
        ("time_s,rms\n0,0\n\n0.01,0.5\n0.02,1\n,\n\n", ".csv"),  # emptied rows
        ("\ufefftime_s, rms\r\n0.00, 0\r\n0.01, 0.5\r\n0.02, 1", ".CSV"),  # as saved by spreadsheets
    ],
)
def test_handwritten_files_are_read(content, suffix):
    np.testing.assert_array_equal(read_bytes(content.encode(), suffix), np.array([0, 0.5, 1], np.float32))


def json_file(rms: object, rate: object = 100) -> bytes:
    return json.dumps({"rate_hz": rate, "rms": rms}).encode()


INVALID = {
    "empty": b"",
    "whitespace": b" \n\n",
    "binary": bytes(range(256)) * 8,
    "NUL bytes": b"time_s,rms\n0.00,\x000.5\n",
    "UTF-16": '{"rate_hz": 100, "rms": [0.5]}'.encode("utf-16"),
    "another format": b"<xml/>",
    "list": b"[0.1, 0.2]",
    "number": b"5",
    "null": b"null",
    "truncated document": b'{"rate_hz": 100, "rms": [0.1, 0.',
    "no rate": b'{"rms": [0.1]}',
    "no values": b'{"rate_hz": 100}',
    "deeply nested": b'{"rate_hz":100,"rms":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "nested": json_file([[[[0.1]]], 3]),
    "object": json_file({"0": 0.1}),
    "text": json_file("loud"),
    "list of texts": json_file(["loud"]),
    "nulls": json_file([None]),
    "booleans": json_file([True]),
    "numbers as text": json_file(["0.1"]),
    "empty list": json_file([]),
    "NaN": json_file([0.1, float("nan")]),
    "infinity": json_file([float("inf")]),
    "negative": json_file([0.1, -0.1]),
    "above float32": json_file([1e39]),
    "above float64": json_file([10**400]),
    "above Python's digit limit": b'{"rate_hz": 100, "rms": [' + b"9" * 5_000 + b"]}",
    "another rate": json_file([0.1], 125),
    "rate of wrong type": json_file([0.1], ["100"]),
    "header only": b"time_s,rms\n",
    "no header": b"0.00,0.5\n0.01,0.5\n",
    "another header": b"time,level\n0.00,0.5\n",
    "missing column": b"time_s,rms\n0\n0.5\n0.01\n0.5\n",
    "extra columns": b"time_s,rms\n0,0.5,0.01,0.5\n",
    "uneven rows": b"time_s,rms\n0.00,0.5\n0.01\n",
    "CSV words": b"time_s,rms\n0.00,loud\n",
    "CSV NaN": b"time_s,rms\n0.00,nan\n",
    "CSV NaN time": b"time_s,rms\nnan,0.5\n",
    "CSV negative": b"time_s,rms\n0.00,-0.5\n",
    "CSV infinity": b"time_s,rms\n0.00,1e39\n",
    "CSV at another rate": b"time_s,rms\n0.000,0.5\n0.008,0.5\n0.016,0.5\n0.024,0.5\n",
    "CSV times decrease": b"time_s,rms\n0.01,0.5\n0.00,0.5\n",
    "huge field": b"time_s,rms\n0.00," + b"9" * 200_000 + b"\n",
    "unclosed quote": b'time_s,rms\n0.00,"0.5\n',
}


@pytest.mark.parametrize("suffix", envelope_file.EXTENSIONS)
@pytest.mark.parametrize("content", INVALID.values(), ids=INVALID.keys())
@pytest.mark.filterwarnings("error")
def test_invalid_file_is_named(content, suffix):
    with pytest.raises(EnvelopeError, match=f"curve{suffix}") as raised:
        read_bytes(content, suffix)
    assert len(str(raised.value)) < 500


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["rate_hz", "rms"]), inner),
    max_leaves=8,
)
documents = st.fixed_dictionaries({"rate_hz": st.just(100) | json_values, "rms": json_values}) | json_values
rows = st.lists(st.lists(st.floats().map(repr) | st.text(max_size=5), max_size=3).map(",".join), max_size=5)


@given(
    content=st.binary(max_size=100)
    | documents.map(lambda document: json.dumps(document).encode())
    | rows.map(lambda lines: "\n".join(["time_s,rms", *lines]).encode(errors="replace")),
    suffix=suffixes,
)
@settings(deadline=None, max_examples=300)
def test_arbitrary_content_raises_only_envelope_error(content, suffix):
    try:
        envelope = read_bytes(content, suffix)
    except EnvelopeError:
        return
    assert envelope.ndim == 1
    assert envelope.size > 0
    assert np.isfinite(envelope).all()
    assert (envelope >= 0).all()


def test_huge_file_is_rejected_unread(tmp_path):
    path = tmp_path / "huge.json"
    with path.open("wb") as file:
        file.truncate(2**40)  # sparse; reading it would exhaust memory
    with pytest.raises(EnvelopeError, match=r"huge\.json"):
        envelope_file.read(path)


def test_rejects_missing_pipe_and_folder(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")  # reading it would block
    for path in (tmp_path / "missing.json", tmp_path / "pipe.csv", tmp_path):
        with pytest.raises(EnvelopeError, match=path.name):
            envelope_file.read(path)


def test_missing_row_is_detected_in_long_table(tmp_path):
    """The tolerance of times is absolute: a relative one exceeds a frame after 500 s."""
    rows = [f"{i / 100},0.1" for i in range(120_000)]
    del rows[90_000]
    (tmp_path / "long.csv").write_text("\n".join(["time_s,rms", *rows]))
    with pytest.raises(EnvelopeError, match="rise from 0"):
        envelope_file.read(tmp_path / "long.csv")
