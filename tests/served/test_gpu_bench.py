"""`foley-bench gpu` where there is no GPU: the command runs to its end, and lists what it could not measure."""

import json
import subprocess
from pathlib import Path

import pytest

from foley_bench.gpu.backends import BACKENDS
from foley_bench.inputs import CALLS

BIN = Path(__file__).resolve().parents[2] / ".venv" / "bin"


def measured(bundle: Path, folder: Path, *options: str) -> dict:
    command = [BIN / "foley-bench", "gpu", "--device", "cpu", "--bundle", bundle, "--rounds", "2", *options]
    command += ["--json", folder / "gpu.json", "--report", folder / "gpu.html"]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    assert "On a GPU" in (folder / "gpu.html").read_text()
    return json.loads((folder / "gpu.json").read_text())


def assert_complete(about: dict) -> None:
    """Every backend of a network has figures of the right outputs, or a reason."""
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


def test_a_network_is_measured_in_all_backends_or_a_reason_is_given(tiny_bundle: Path, tmp_path: Path) -> None:
    document = measured(tiny_bundle, tmp_path, "--only", "denoiser", "--only", "vocoder")
    assert set(document["networks"]) == {"denoiser", "vocoder"}
    for about in document["networks"].values():
        assert_complete(about)
    assert document["clip"] == {}


@pytest.mark.long
def test_a_clip_is_compared_at_equal_steps(tiny_bundle: Path, tmp_path: Path) -> None:
    document = measured(tiny_bundle, tmp_path)
    assert set(document["networks"]) == set(CALLS)
    for about in document["networks"].values():
        assert_complete(about)
    clip, steps = document["clip"], document["settings"]["steps"]
    assert {"baseline", "eager", "autocast"} <= set(clip)
    for count in (200, steps):
        assert clip["baseline"][f"speedup_{count}_steps"] == 1
    step_s = document["networks"]["denoiser"]["backends"]["eager"]["median_s"]
    saved_s = clip["eager"]["seconds_200_steps"] - clip["eager"][f"seconds_{steps}_steps"]
    assert saved_s == pytest.approx((200 - steps) * step_s)


def test_without_a_gpu_the_command_says_so() -> None:
    run = subprocess.run([BIN / "foley-bench", "gpu"], capture_output=True, text=True, timeout=100)
    if run.returncode == 0:
        pytest.skip("there is a GPU")
    assert run.returncode == 2
    assert "PyTorch finds no GPU" in run.stderr
