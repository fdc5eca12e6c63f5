"""Starting, stopping and cancelling: nothing goes on, nothing is left behind, whoever ends how."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from foley import envelope_file
from foley_client import Triton, embedded_triton

BIN = Path(__file__).resolve().parents[2] / ".venv" / "bin"


def processes() -> set[int]:
    """Server processes of this machine, the stubs of the models included."""
    names = ("foley-server", "tritonserver", "triton_python_backend_stub")
    return {
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if any(name in part for part in (process.info["cmdline"] or [])[:2] for name in names)
    }


def traces() -> tuple[set[int], set[str], set[str]]:
    """Processes, shared-memory regions and run folders of servers."""
    shared = {path.name for path in Path("/dev/shm").glob("foley_*")}
    return processes(), shared, {path.name for path in Path("/tmp").glob("foley-triton-*")}


@pytest.fixture
def nothing_left() -> Iterator[None]:
    before = traces()
    yield
    deadline = time.monotonic() + 40
    while (after := traces()) != before and time.monotonic() < deadline:
        time.sleep(0.2)
    assert after == before


@pytest.mark.usefixtures("nothing_left")
def test_two_servers_live_side_by_side_and_leave_nothing(triton: Triton, tiny_bundle: Path) -> None:
    latents = np.random.default_rng(0).standard_normal((1, 8, 256, 16))
    expected = triton.infer("latents_to_waveform", latents=latents)["waveform"]
    with embedded_triton(tiny_bundle) as second:
        assert second.url != triton.url
        np.testing.assert_array_equal(second.infer("latents_to_waveform", latents=latents)["waveform"], expected)
    np.testing.assert_array_equal(triton.infer("latents_to_waveform", latents=latents)["waveform"], expected)


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_server_of_a_call_ends_with_it(
    repository: Path, tiny_bundle: Path, tmp_path: Path, end: signal.Signals
) -> None:
    command = [BIN / "foley", "generate", repository / "examples" / "drumstick.mp4", "--bundle", tiny_bundle]
    environment = {key: value for key, value in os.environ.items() if key != "FOLEY_SERVER"}
    before = processes()
    call = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    while not any("stub" in " ".join(psutil.Process(pid).cmdline()) for pid in processes() - before):
        assert call.poll() is None
        time.sleep(0.1)
    call.send_signal(end)
    _, message = call.communicate(timeout=60)
    assert call.returncode == (-end if end == signal.SIGKILL else 130)
    if end == signal.SIGINT:
        assert "stopped" in message
        assert "Traceback" not in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("loop", ["client", "server"])
def test_ctrl_c_stops_the_denoising_within_a_step(triton: Triton, repository: Path, tmp_path: Path, loop: str) -> None:
    """Shown from Triton's statistics: after Ctrl-C the denoiser runs one step more, at most."""
    curve = tmp_path / "curve.json"
    curve.write_text(envelope_file.dumps(np.full(800, 0.1, np.float32), ".json"))
    command = [BIN / "foley", "generate", repository / "examples" / "drumstick.mp4", "--envelope", curve]
    command += ["--loop", loop, "--steps", "1000", "--server", triton.url, "-o", "result.mp4"]

    def steps() -> int:
        return int(triton.statistics("denoiser").get("inference_count", 0))

    start = steps()
    call = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    while steps() < start + 5:
        assert call.poll() is None
        time.sleep(0.01)
    call.send_signal(signal.SIGINT)
    interrupted = steps()
    _, message = call.communicate(timeout=60)
    assert call.returncode == 130
    assert "stopped" in message
    time.sleep(0.5)
    done = steps()
    assert done - interrupted < 100  # of 1000: the signal's way takes a while, the rest of the loop is not run
    time.sleep(0.5)
    assert steps() == done
    assert list(tmp_path.iterdir()) == [curve]


def test_unusable_bundle_is_named(repository: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    """Missing, damaged or without graphs: `foley-server run` says which file, and ends with exit code 2."""

    def serve(bundle: Path) -> str:
        command = [BIN / "foley-server", "run", "--bundle", bundle, "--grpc-port", "0", "--metrics-port", "0"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 2
        assert done.stderr.startswith("error: ")
        return done.stderr

    assert "nowhere/manifest.json" in serve(tmp_path / "nowhere")
    bundle = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, bundle)
    weights = bundle / "networks" / "vocoder.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert "vocoder.safetensors is damaged" in serve(bundle)
    weights.unlink()
    assert "vocoder.safetensors" in serve(bundle)
    plain = tmp_path / "plain"
    subprocess.run([BIN / "foley-export", "init", plain, "--preset", "tiny"], check=True, timeout=120)
    assert "foley-export onnx" in serve(plain)


def test_bundles_are_seeded_and_never_half_written(tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        init = [BIN / "foley-export", "init", tmp_path / name, "--preset", "tiny", "--seed", str(seed)]
        subprocess.run(init, check=True, timeout=120)
    a, b, c = ((tmp_path / name / "manifest.json").read_text() for name in "abc")
    assert a == b != c
    again = subprocess.run(init, capture_output=True, text=True, timeout=120)
    assert again.returncode == 2
    assert "exists already" in again.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]
