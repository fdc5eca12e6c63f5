"""What every kind of test uses: the checkout and its default bundle."""

import os
import subprocess
from pathlib import Path

import pytest

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # for sessions in the tests' own process; must be set before the import

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def tiny_bundle() -> Path:
    """The default bundle, with graphs that are up to date."""
    subprocess.run(["make", "--silent", "bundle"], cwd=REPOSITORY, check=True)
    return REPOSITORY / "bundles" / "tiny"
