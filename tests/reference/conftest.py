"""Fixtures for the comparison with the official implementation (`shared/reference/README.md`)."""

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from foley_export.verification.vectors import Vectors

_BESIDE_REPOSITORY = Path(__file__).resolve().parents[3] / "shared" / "reference"


@pytest.fixture(scope="session")
def reference() -> Path:
    """The folder of golden vectors and key lists; `FOLEY_REFERENCE` overrides its location.

    Without it, the tests are skipped; in CI, where the variable `CI` is set, they fail.
    """
    folder = Path(os.environ.get("FOLEY_REFERENCE", _BESIDE_REPOSITORY))
    if not (folder / "vectors").is_dir():
        stop = pytest.fail if os.environ.get("CI") else pytest.skip
        stop(f"no reference data in {folder} (set FOLEY_REFERENCE)")
    return folder


@pytest.fixture(scope="session")
def vectors(reference: Path) -> Vectors:
    """The golden vectors, which record what the tests of the session read."""
    return Vectors(reference)


@pytest.fixture(scope="session")
def checkpoint_keys(reference: Path) -> Callable[[str], dict]:
    """`checkpoint_keys(file)`: the content of `checkpoint_keys/<file>`, decompressed if it ends in `.gz`."""

    def load(file: str) -> dict:
        data = (reference / "checkpoint_keys" / file).read_bytes()
        return json.loads(gzip.decompress(data) if file.endswith(".gz") else data)

    return load
