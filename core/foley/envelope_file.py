"""Envelope files in JSON or CSV, which users can edit and pass back.

.json: {"rate_hz": 100, "rms": [0.0, 0.012, ...]}
.csv: a header "time_s,rms", then one line per frame
"""

import csv
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt

from foley import clip
from foley.envelope import Floats, validate
from foley.errors import EnvelopeError

EXTENSIONS = (".json", ".csv")
MAX_BYTES = 16 * 2**20  # several hours of frames


def dumps(envelope: Floats, suffix: str) -> str:
    """Return the content of an envelope file with the extension `suffix`, one of `EXTENSIONS`."""
    if suffix == ".json":
        return json.dumps({"rate_hz": clip.ENVELOPE_RATE_HZ, "rms": [round(float(v), 6) for v in envelope]}) + "\n"
    lines = [f"{i / clip.ENVELOPE_RATE_HZ:.2f},{v:.6f}" for i, v in enumerate(envelope)]
    return "\n".join(["time_s,rms", *lines]) + "\n"


def read(path: Path) -> Floats:
    """Read the envelope in `path` (.json or .csv).

    Raises:
        EnvelopeError: The file cannot be read, or its format, frame rate or values are invalid.
    """
    try:
        if not path.is_file():
            raise EnvelopeError(f"the envelope file {path} does not exist; create it with `foley envelope`")
        if path.stat().st_size > MAX_BYTES:
            raise EnvelopeError(
                f"{path} is larger than {MAX_BYTES >> 20} MiB, so it is not an envelope; check the name"
            )
        text = path.read_text(encoding="utf-8-sig")  # spreadsheets write a byte order mark
    except OSError as error:
        raise EnvelopeError(f"cannot read the envelope {path} ({error.strerror}); check the permissions") from error
    except UnicodeDecodeError as error:
        raise EnvelopeError(f"{path} is not an envelope: it is not UTF-8 text") from error
    values = _from_json(path, text) if path.suffix.lower() == ".json" else _from_csv(path, text)
    try:
        return validate(values)
    except EnvelopeError as error:
        raise EnvelopeError(f"{path}: {error}") from error


def _from_json(path: Path, text: str) -> npt.ArrayLike:
    try:
        document = json.loads(text)
        rate = float(document["rate_hz"])
        rms = document["rms"]
        if not all(type(value) in (int, float) for value in rms):
            raise TypeError
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise EnvelopeError(f'{path} is not an envelope: expected {{"rate_hz": 100, "rms": [...]}}') from error
    if rate != clip.ENVELOPE_RATE_HZ:
        raise EnvelopeError(f"{path} has {rate:g} frames per second; resample it to {clip.ENVELOPE_RATE_HZ}")
    values: npt.ArrayLike = rms
    return values


def _from_csv(path: Path, text: str) -> npt.ArrayLike:
    try:
        rows = [row for row in csv.reader(text.splitlines(), strict=True) if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise EnvelopeError(f"{path} is not an envelope: {error}") from error
    if not rows or [cell.strip() for cell in rows[0]] != ["time_s", "rms"]:
        raise EnvelopeError(f"{path} is not an envelope: its first line must be 'time_s,rms'")
    try:
        pairs = [(float(time), float(value)) for time, value in rows[1:]]
    except ValueError as error:
        raise EnvelopeError(f"{path} is not an envelope: each line must have two numbers") from error
    times = [time for time, _ in pairs]
    if not np.allclose(times, np.arange(len(times)) / clip.ENVELOPE_RATE_HZ, rtol=0.0, atol=0.005):
        raise EnvelopeError(
            f"{path} is not an envelope: its times must rise from 0 in steps of {1 / clip.ENVELOPE_RATE_HZ} s"
        )
    return [value for _, value in pairs]
