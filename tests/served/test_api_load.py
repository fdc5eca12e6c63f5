"""A short form of the load test, which `make load` measures: bad connections, and ordinary calls that all succeed."""

from pathlib import Path

from foley_pipeline.triton import TritonClient
from harness.api_server import api_server
from harness.bad_clients import KINDS
from harness.load import load


def test_bad_connections_do_not_keep_ordinary_clients_out(triton: TritonClient, tmp_path: Path) -> None:
    (tmp_path / "quiet").mkdir()
    with (
        api_server(tmp_path, triton=triton.url) as loaded,
        api_server(tmp_path / "quiet", triton=triton.url) as quiet,
    ):
        outcome = load(loaded, quiet, 200, 8, 10)
    assert outcome.errors == []
    assert {len(seconds) for seconds in outcome.seconds.values()} == {10}
    assert len(outcome.seconds) == 4  # of two methods and two APIs
    assert outcome.memory_bytes < 48 << 20  # 40 do not read: one waits with a chunk of its result, not with megabytes
    (opened,) = outcome.bad
    assert {part.split()[1] for part in opened.split(", ")} == {kind.__name__ for kind in KINDS}
