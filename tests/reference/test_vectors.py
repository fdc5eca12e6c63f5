"""What `foley-export verify` checks, one module a test: the official numbers, at the official size."""

import sys

import pytest

from foley_export import cli
from foley_export.verification import CHECKS
from foley_export.verification.check import Check, NetworkCheck

FAST_GRAPHS = {"flow_features", "vae_decoder"}  # seconds; all the graphs together take minutes
EXPORTED = [check for check in CHECKS if isinstance(check, NetworkCheck) and check.exported]


@pytest.fixture(scope="module")
def checked() -> set[str]:
    """Modules that a test of this run has checked."""
    return set()


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.module)
def test_module_computes_the_official_numbers(check: Check, vectors, checked):
    results = list(check.run(vectors, onnx=check.module in FAST_GRAPHS))
    assert results
    assert any(result.engine == "onnx" for result in results) == (check.module in FAST_GRAPHS)
    assert not [result for result in results if not result.passed]
    checked.add(check.module)


def test_no_vector_is_left_out(vectors, checked):
    if checked != {check.module for check in CHECKS}:
        pytest.skip("only a run of all checks can tell")
    assert vectors.unread() == []


@pytest.mark.long
@pytest.mark.parametrize("check", EXPORTED, ids=lambda check: check.module)
def test_graphs_compute_the_official_numbers(check: NetworkCheck, vectors):
    """Also in half precision, which stays near float32; nothing is too large for float16."""
    results = list(check.run(vectors, onnx=True, half="fp16"))
    assert {result.engine for result in results} == {"torch", "onnx", "fp16"}
    assert any(result.what.startswith("largest value") for result in results)
    assert not [result for result in results if not result.passed]


@pytest.mark.long
def test_vectors_of_another_salt_are_another_networks(reference, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["foley-export", "verify", "--vectors", str(reference), "--salt", "x"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 1
    output = capsys.readouterr()
    assert "comparisons failed" in output.err
    for check in CHECKS:
        rows = [line for line in output.out.splitlines() if line.startswith(f"  {check.module}  ")]
        assert any("FAIL" in row for row in rows) == isinstance(check, NetworkCheck), check.module
