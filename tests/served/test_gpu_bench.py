"""`foley-bench gpu` where there is no GPU: the script runs to its end, and says what it could not measure."""

import json
import subprocess
from pathlib import Path

import pytest

from foley_bench.gpu.measure import CLIP
from foley_bench.gpu.ways import WAYS

BIN = Path(__file__).resolve().parents[2] / ".venv" / "bin"


@pytest.fixture(scope="module")
def document(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    folder = tmp_path_factory.mktemp("gpu")
    command = [BIN / "foley-bench", "gpu", "--device", "cpu", "--bundle", tiny_bundle, "--repeats", "2"]
    command += ["--json", folder / "gpu.json", "--report", folder / "gpu.html"]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    assert "A clip of 10 s" in (folder / "gpu.html").read_text()
    return json.loads((folder / "gpu.json").read_text())


def test_all_networks_are_measured_all_ways_or_a_reason_is_given(document: dict) -> None:
    assert set(document["networks"]) == set(CLIP)
    for name, about in document["networks"].items():
        assert set(about["ways"]) == set(WAYS)
        for way in ("official", "eager", "autocast"):
            figures = about["ways"][way]
            assert figures["right"], (name, way, figures)
            assert figures["seconds"] > 0
            assert figures["official_to_this"] == pytest.approx(
                about["ways"]["official"]["seconds"] / figures["seconds"]
            )
        assert about["ways"]["eager"]["error"] == 0
        assert "GPUs only" in about["ways"]["torch.compile"]["skipped"]
        assert "CUDA provider" in about["ways"]["ONNX Runtime"]["skipped"]
        assert "TensorRT" in about["ways"]["TensorRT"]["skipped"]


def test_a_clip_is_all_its_calls(document: dict) -> None:
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
