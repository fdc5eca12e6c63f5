"""The fuzzer in short (in full: `make test-long`, or `make fuzz` for other numbers)."""

from pathlib import Path

import pytest

from foley_pipeline.triton import TritonClient
from harness.api_server import api_server
from harness.fuzz import fuzz


@pytest.mark.parametrize("count", [80, pytest.param(2000, marks=[pytest.mark.long, pytest.mark.timeout(1200)])])
def test_16_malformed_input_cannot_kill_or_leak(triton: TritonClient, tmp_path: Path, count: int) -> None:
    with api_server(tmp_path, triton=triton.url) as server:
        outcome = fuzz(server, tmp_path, count, 0, print)
    assert outcome.faults == []
    assert sum(outcome.codes.values()) == count
    assert len({kind for kind, _ in outcome.codes}) > 6
    assert sum(number for (_, code), number in outcome.codes.items() if code == "OK") > 0
