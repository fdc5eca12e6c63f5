"""`foley-bench gpu` where there is no GPU: the script runs to its end, and says what it could not measure."""

import json
import subprocess
from pathlib import Path

import pytest

from foley_bench.gpu.measure import CLIP
from foley_bench.gpu.ways import WAYS

BIN = Path(__file__).resolve().parents[2] / ".venv" / "bin"


def measured(bundle: Path, folder: Path, *options: str) -> dict:
    command = [BIN / "foley-bench", "gpu", "--device", "cpu", "--bundle", bundle, "--repeats", "2", *options]
    command += ["--json", folder / "gpu.json", "--report", folder / "gpu.html"]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    assert "On a GPU" in (folder / "gpu.html").read_text()
    return json.loads((folder / "gpu.json").read_text())


def assert_whole(about: dict) -> None:
    """A network has figures that agree with each other, or a reason, for every way."""
    assert set(about["ways"]) == set(WAYS)
    for way in ("official", "eager", "autocast"):
        figures = about["ways"][way]
        assert figures["right"], (way, figures)
        assert figures["official_to_this"] == pytest.approx(about["ways"]["official"]["seconds"] / figures["seconds"])
    assert about["ways"]["eager"]["error"] == 0
    assert about["ways"]["autocast"]["error"] > 0 or about["flop"] == 0
    assert "GPUs only" in about["ways"]["torch.compile"]["skipped"]
    assert "CUDA provider" in about["ways"]["ONNX Runtime"]["skipped"]
    assert "TensorRT" in about["ways"]["TensorRT"]["skipped"]


def test_a_network_is_measured_all_ways_or_a_reason_is_given(tiny_bundle: Path, tmp_path: Path) -> None:
    document = measured(tiny_bundle, tmp_path, "--only", "denoiser", "--only", "vocoder")
    assert set(document["networks"]) == {"denoiser", "vocoder"}
    for about in document["networks"].values():
        assert_whole(about)
    assert document["clip"] == {}


@pytest.mark.long
def test_a_clip_is_all_its_calls(tiny_bundle: Path, tmp_path: Path) -> None:
    document = measured(tiny_bundle, tmp_path)
    assert set(document["networks"]) == set(CLIP)
    for about in document["networks"].values():
        assert_whole(about)
    assert {"official", "eager", "autocast"} <= set(document["clip"])
    assert document["clip"]["official"]["calls"]["denoiser"] == 200
    assert document["clip"]["eager"]["calls"]["denoiser"] == document["settings"]["steps"]
    assert document["clip"]["eager"]["calls"]["optical_flow"] == 19  # 299 pairs, 16 at once
    assert document["clip"]["official"]["official_to_this"] == 1


def test_without_a_gpu_the_command_says_so() -> None:
    run = subprocess.run([BIN / "foley-bench", "gpu"], capture_output=True, text=True, timeout=100)
    if run.returncode == 0:
        pytest.skip("there is a GPU")
    assert run.returncode == 2
    assert "PyTorch has no GPU here" in run.stderr
