"""Fixtures of the tests against what the official implementation computes (`shared/reference/README.md`)."""

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

_BESIDE_REPOSITORY = Path(__file__).resolve().parents[3] / "shared" / "reference"


@pytest.fixture(scope="session")
def reference() -> Path:
    """The folder of golden vectors and key lists; `FOLEY_REFERENCE` names another one."""
    folder = Path(os.environ.get("FOLEY_REFERENCE", _BESIDE_REPOSITORY))
    if not (folder / "vectors").is_dir():
        pytest.skip(f"no reference data in {folder} (set FOLEY_REFERENCE)")
    return folder


@pytest.fixture(scope="session")
def vector(reference: Path) -> Callable[[str], dict[str, np.ndarray]]:
    """`vector(name)`: the arrays of `vectors/<name>.npz`."""

    def load(name: str) -> dict[str, np.ndarray]:
        with np.load(reference / "vectors" / f"{name}.npz") as arrays:
            return dict(arrays)

    return load


@pytest.fixture(scope="session")
def checkpoint_keys(reference: Path) -> Callable[[str], dict]:
    """`checkpoint_keys(file)`: the content of `checkpoint_keys/<file>`, gzipped or not."""

    def load(file: str) -> dict:
        data = (reference / "checkpoint_keys" / file).read_bytes()
        return json.loads(gzip.decompress(data) if file.endswith(".gz") else data)

    return load


@pytest.fixture(scope="session")
def relative_error() -> Callable[[np.ndarray, np.ndarray], float]:
    """`relative_error(actual, expected)`: the L2 norm of the difference over that of `expected`."""

    def measure(actual: np.ndarray, expected: np.ndarray) -> float:
        actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
        assert actual.shape == expected.shape
        return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))

    return measure
