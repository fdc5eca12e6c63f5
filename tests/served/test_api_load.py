"""A short form of the load test, which `make load` measures: bad connections, and ordinary calls that all succeed."""

from pathlib import Path

from foley_pipeline.triton import TritonClient
from harness.api_server import api_server
from harness.bad_clients import KINDS
from harness.load import load


def test_bad_connections_do_not_keep_ordinary_clients_out(triton: TritonClient, tmp_path: Path) -> None:
    with api_server(tmp_path, triton=triton.url) as server:
        outcome = load(server, 200, 8, 10, 1, print)
    assert outcome.errors == []
    assert {key: len(seconds) for key, seconds in outcome.seconds.items()} == {
        ("Generate", False): 20,
        ("GetOperation", False): 20,
        ("Generate", True): 10,
        ("GetOperation", True): 10,
    }
    (opened,) = outcome.bad
    assert {part.split()[1] for part in opened.split(", ")} == {kind.__name__ for kind in KINDS}
