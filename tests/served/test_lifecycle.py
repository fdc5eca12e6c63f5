"""Start, stop and cancellation of servers and calls: work stops, and nothing is left behind."""

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
import psutil
import pytest

from foley import envelope_file
from foley.bundle import MANIFEST
from foley.errors import Cancelled
from foley.options import GenerateOptions
from foley_client.embedded import embedded_triton
from foley_pipeline.cancellation import CancelToken
from foley_pipeline.request import EnvelopeInput, GenerationRequest
from foley_pipeline.triton import TritonClient
from foley_pipeline.triton_backend import TritonBackend
from harness.settled import settled

BIN = Path(__file__).resolve().parents[2] / ".venv" / "bin"


class Traces:
    """Processes, run folders and shared memory of the servers started with one environment."""

    def __init__(self, folder: Path) -> None:
        self.mark = secrets.token_hex(8)
        self.folder = folder
        folder.mkdir()
        self.started = False
        self.folders: set[str] = set()  # run folders seen so far; shared-memory regions have their names as prefix
        self.environment = {**os.environ, "TMPDIR": str(folder), "FOLEY_TEST_MARK": self.mark}
        self.environment.pop("FOLEY_SERVER", None)

    def processes(self) -> set[str]:
        """Return the command lines of the running processes."""
        found = set()
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("FOLEY_TEST_MARK") == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.add(" ".join(process.cmdline()))
        self.started |= bool(found)
        self.folders |= {path.name for path in self.folder.glob("foley-triton-*")}
        return found

    def left(self) -> list[str]:
        """Return all processes, shared-memory regions and run folders that exist."""
        processes = self.processes()
        shared = [path.name for folder in self.folders for path in Path("/dev/shm").glob(f"{folder}*")]
        return [*processes, *shared, *(path.name for path in self.folder.iterdir())]


@pytest.fixture
def traces(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traces]:
    traces = Traces(tmp_path_factory.mktemp("traces") / "run")
    yield traces
    assert traces.started, "the test started no server under this environment"
    deadline = time.monotonic() + 40
    while traces.left() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert traces.left() == []


@pytest.mark.long
def test_two_servers_run_concurrently_and_leave_nothing(
    triton: TritonClient, tiny_bundle: Path, traces: Traces, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in traces.environment.items():
        monkeypatch.setenv(name, value)
    latents = np.random.default_rng(0).standard_normal((1, 8, 256, 16))
    expected = triton.infer("latents_to_waveform", latents=latents)["waveform"]
    with embedded_triton(tiny_bundle) as second:
        assert second.url != triton.url
        assert any("tritonserver" in command for command in traces.processes())
        np.testing.assert_array_equal(second.infer("latents_to_waveform", latents=latents)["waveform"], expected)
    np.testing.assert_array_equal(triton.infer("latents_to_waveform", latents=latents)["waveform"], expected)


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_embedded_server_ends_with_killed_call(
    repository: Path, tiny_bundle: Path, tmp_path: Path, traces: Traces, end: signal.Signals
) -> None:
    command = [BIN / "foley", "generate", repository / "examples" / "drumstick.mp4", "--bundle", tiny_bundle]
    call = subprocess.Popen(command, cwd=tmp_path, env=traces.environment, stderr=subprocess.PIPE, text=True)
    while not any("stub" in command for command in traces.processes()):
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
def test_ctrl_c_stops_denoising_within_a_step(
    triton: TritonClient, repository: Path, tmp_path: Path, loop: str
) -> None:
    """Triton's statistics show that after Ctrl-C the denoiser runs at most one more step."""
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
    done = settled(steps, interval_s=1.0)
    assert done - interrupted < 100  # of 1000: the signal takes time to arrive
    assert list(tmp_path.iterdir()) == [curve]


def test_ctrl_c_stops_feature_extraction(triton: TritonClient, repository: Path, tmp_path: Path) -> None:
    video = repository / "examples" / "drumstick.mp4"
    command = [BIN / "foley", "generate", video, "--text", "wood", "--server", triton.url, "-o", "result.mp4"]

    def chunks() -> int:
        return int(triton.statistics("optical_flow").get("inference_count", 0))

    start = chunks()
    call = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    while chunks() < start + 2:
        assert call.poll() is None
        time.sleep(0.01)
    call.send_signal(signal.SIGINT)
    interrupted = chunks()
    _, message = call.communicate(timeout=60)
    assert call.returncode == 130
    assert "stopped" in message
    assert "Traceback" not in message
    done = settled(chunks, interval_s=1.0)
    assert done - interrupted < 6  # of about 15: two are on the server, and the signal takes time to arrive
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
def test_next_start_removes_files_of_killed_server(tiny_bundle: Path, traces: Traces) -> None:
    """After SIGKILL of `foley-server`, its Triton ends; the next start removes the files."""
    command = [BIN / "foley-server", "run", "--bundle", tiny_bundle, "--grpc-port", "0", "--metrics-port", "0"]

    def start() -> "subprocess.Popen[str]":
        server = subprocess.Popen(command, env=traces.environment, stdout=subprocess.PIPE, text=True)
        assert server.stdout is not None
        assert server.stdout.readline().startswith("ready ")
        return server

    killed = start()
    killed.kill()
    killed.wait()
    (left,) = traces.folder.iterdir()
    while traces.processes():
        time.sleep(0.1)
    second = start()
    assert not left.exists()
    third = start()
    assert len(list(traces.folder.iterdir())) == 2  # files of running servers are kept
    for server in (second, third):
        server.terminate()
        assert server.wait(60) == 0


@pytest.mark.parametrize("victim", ["tritonserver", "stub"])
def test_server_exits_when_a_process_dies(tiny_bundle: Path, traces: Traces, victim: str) -> None:
    """Requests to a model whose process has died would otherwise wait forever."""
    command = [BIN / "foley-server", "run", "--bundle", tiny_bundle, "--grpc-port", "0", "--metrics-port", "0"]
    server = subprocess.Popen(
        command, env=traces.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    assert server.stdout.readline().startswith("ready ")
    traces.processes()
    children = psutil.Process(server.pid).children(recursive=True)
    next(child for child in children if victim in child.name() or victim in " ".join(child.cmdline()[:1])).kill()
    _, message = server.communicate(timeout=60)
    assert server.returncode == 1
    assert ("Triton exited unexpectedly" if victim == "tritonserver" else "the process of model") in message
    assert "Traceback" not in message


def startup_error(*options: object) -> str:
    """Return the error of `foley-server run`, which must not start."""
    command = [BIN / "foley-server", "run", *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    return done.stderr


def test_rejects_port_in_use(triton: TritonClient, tiny_bundle: Path) -> None:
    port = triton.url.rsplit(":", 1)[1]
    assert port in startup_error("--bundle", tiny_bundle, "--grpc-port", port, "--metrics-port", "0")


def test_rejects_invalid_address_and_model_repository(tiny_bundle: Path, tmp_path: Path) -> None:
    ports = ("--bundle", tiny_bundle, "--grpc-port", "0", "--metrics-port", "0")
    assert "203.0.113.1" in startup_error(*ports, "--address", "203.0.113.1")
    assert "nowhere" in startup_error(*ports, "--models", tmp_path / "nowhere")


def test_rejects_unusable_bundle(tiny_bundle: Path, tmp_path: Path) -> None:
    """Missing, damaged or without graphs: the message names the file; the exit code is 2."""

    def serve(bundle: Path) -> str:
        return startup_error("--bundle", bundle, "--grpc-port", "0", "--metrics-port", "0")

    assert "nowhere/manifest.json" in serve(tmp_path / "nowhere")
    plain, bundle = tmp_path / "plain", tmp_path / "bundle"
    shutil.copytree(tiny_bundle, plain, ignore=shutil.ignore_patterns("*.onnx"))
    manifest = json.loads((plain / MANIFEST).read_text())
    manifest["files"] = {name: digest for name, digest in manifest["files"].items() if not name.endswith(".onnx")}
    (plain / MANIFEST).write_text(json.dumps(manifest))
    assert "foley-export onnx" in serve(plain)
    shutil.copytree(tiny_bundle, bundle)
    weights = bundle / "networks" / "vocoder.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert "vocoder.safetensors is damaged" in serve(bundle)
    weights.unlink()
    assert "vocoder.safetensors" in serve(bundle)


@pytest.mark.long
def test_init_is_seeded_and_keeps_existing_bundle(tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        init = [BIN / "foley-export", "init", tmp_path / name, "--preset", "tiny", "--seed", str(seed)]
        subprocess.run(init, check=True, timeout=120)
    a, b, c = ((tmp_path / name / "manifest.json").read_text() for name in "abc")
    assert a == b != c
    repeated = subprocess.run(init, capture_output=True, text=True, timeout=120)
    assert repeated.returncode == 2
    assert "exists already" in repeated.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]


@pytest.fixture
def stopped(triton: TritonClient, tmp_path: Path) -> Iterator[Callable[[str], None]]:
    """`stopped(model)`: waits for the next inference of `model`, then stops the server process with SIGSTOP."""
    servers = [one for one in psutil.Process().children(recursive=True) if one.name() == "tritonserver"]
    (server,) = (one for one in servers if port_of(triton) in {net.laddr.port for net in one.net_connections()})

    def count(model: str) -> int:
        return int(triton.statistics(model).get("inference_count", 0))

    before = {model: count(model) for model in ("denoiser", "optical_flow")}

    def stop(model: str) -> None:
        until = time.monotonic() + 60
        while count(model) == before[model]:
            assert time.monotonic() < until
            time.sleep(0.01)
        server.suspend()

    try:
        yield stop
    finally:
        server.resume()
        assert triton.ready()


def port_of(triton: TritonClient) -> int:
    return int(triton.url.rpartition(":")[2])


@pytest.mark.parametrize(
    ("command", "options", "model"),
    [
        ("generate", ["--steps", "1000", "--envelope", "curve.json"], "denoiser"),
        ("generate", ["--steps", "1000", "--envelope", "curve.json", "--loop", "server"], "denoiser"),
        ("generate", [], "optical_flow"),
        ("envelope", [], "optical_flow"),
    ],
)
def test_ctrl_c_ends_call_to_unresponsive_server(
    triton: TritonClient,
    stopped: Callable[[str], None],
    repository: Path,
    tmp_path: Path,
    command: str,
    options: list[str],
    model: str,
) -> None:
    (tmp_path / "curve.json").write_text(envelope_file.dumps(np.full(800, 0.1, np.float32), ".json"))
    video = repository / "examples" / "drumstick.mp4"
    output = "result.mp4" if command == "generate" else "curve.csv"
    arguments = [BIN / "foley", command, video, *options, "--server", triton.url, "--no-cache", "-o", output]
    call = subprocess.Popen(arguments, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    try:
        stopped(model)
        time.sleep(0.5)  # responses in flight arrive
        assert call.poll() is None
        call.send_signal(signal.SIGINT)
        _, message = call.communicate(timeout=30)
    finally:
        call.kill()
    assert call.returncode == 130
    assert "stopped" in message
    assert "Traceback" not in message


@pytest.mark.parametrize("loop", ["client", "server"])
def test_cancel_token_ends_call_to_unresponsive_server(
    triton: TritonClient, stopped: Callable[[str], None], loop: Literal["client", "server"]
) -> None:
    cancel = CancelToken()
    envelope = EnvelopeInput(np.full(800, 0.1, np.float32), 128_000)
    request = GenerationRequest(envelope=envelope, options=GenerateOptions(steps=1000))
    with TritonClient(triton.url) as connection, ThreadPoolExecutor(1) as pool:
        running = pool.submit(TritonBackend(connection, loop=loop).generate, request, cancel=cancel)
        stopped("denoiser")
        assert not running.done()
        cancel.cancel()
        assert isinstance(running.exception(30), Cancelled)
