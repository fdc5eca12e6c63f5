"""`foley-bench gpu` without a GPU: the command completes, and lists what it could not measure."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from foley.errors import ServerUnavailable
from foley_bench.cli import app
from foley_bench.gpu.backends import BACKENDS
from foley_bench.inputs import CALLS


def measured(bundle: Path, folder: Path, *options: str) -> dict:
    command = ["gpu", "--device", "cpu", "--bundle", bundle, "--rounds", "2", *options]
    command += ["--json", folder / "gpu.json", "--report", folder / "gpu.html"]
    result = CliRunner().invoke(app, [*map(str, command)], catch_exceptions=False)
    assert result.exit_code == 0
    assert "On a GPU" in (folder / "gpu.html").read_text()
    return json.loads((folder / "gpu.json").read_text())


def assert_complete(about: dict) -> None:
    """Assert that every backend of a network has measurements of correct outputs, or a reason for skipping it."""
    backends = about["backends"]
    assert set(backends) == set(BACKENDS)
    for backend in ("baseline", "eager", "autocast"):
        assert backends[backend]["within_tolerance"], (backend, backends[backend])
        assert backends[backend]["rounds"] == 2
    assert backends["eager"]["error"] == 0
    assert backends["autocast"]["error"] > 0 or about["flop"] == 0
    assert "GPUs only" in backends["torch.compile"]["skipped"]
    assert "CUDA provider" in backends["ONNX Runtime"]["skipped"]
    assert "TensorRT" in backends["TensorRT"]["skipped"]


def test_every_backend_is_measured_or_skipped_with_a_reason(tiny_bundle: Path, tmp_path: Path) -> None:
    document = measured(tiny_bundle, tmp_path, "--only", "denoiser", "--only", "vocoder")
    assert set(document["networks"]) == {"denoiser", "vocoder"}
    for about in document["networks"].values():
        assert_complete(about)
    assert document["clip"] == {}


@pytest.mark.long
def test_clip_is_compared_at_equal_steps(tiny_bundle: Path, tmp_path: Path) -> None:
    document = measured(tiny_bundle, tmp_path)
    assert set(document["networks"]) == set(CALLS)
    for about in document["networks"].values():
        assert_complete(about)
    clip, steps = document["clip"], document["settings"]["steps"]
    assert {"baseline", "eager", "autocast"} <= set(clip)
    for count in (200, steps):
        assert clip["baseline"][f"speedup_{count}_steps"] == 1


def test_missing_gpu_is_reported() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    result = CliRunner().invoke(app, ["gpu"])
    assert isinstance(result.exception, ServerUnavailable)
    assert "PyTorch finds no GPU" in str(result.exception)
