"""A short run of the fuzzer; `make test-long` runs it in full, `make fuzz` with other seeds."""

from pathlib import Path

import pytest

from foley_pipeline.triton import TritonClient
from harness.api_server import api_server
from harness.fuzz import fuzz


@pytest.mark.parametrize("count", [80, pytest.param(2000, marks=[pytest.mark.long, pytest.mark.timeout(1200)])])
def test_malformed_input_causes_no_crash_or_leak(triton: TritonClient, tmp_path: Path, count: int) -> None:
    with api_server(tmp_path, triton=triton.url) as server:
        outcome = fuzz(server, tmp_path, count, 0, print)
    assert outcome.faults == []
    assert sum(outcome.codes.values()) == count
    assert len({kind for kind, _ in outcome.codes}) > 6
    assert sum(number for (_, code), number in outcome.codes.items() if code == "OK") > 0
