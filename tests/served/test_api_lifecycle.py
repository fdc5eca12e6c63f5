"""The API server and its embedded Triton: shutdown, crashes and hangs."""

import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from foley.errors import FoleyError, ServerUnavailable, TimedOut
from foley_client import FoleyClient, GenerationJob, Progress
from foley_client.embedded import embedded_triton
from foley_pipeline.progress import OnProgress, ignore_progress
from foley_pipeline.triton import TritonClient
from foley_server.jobs.media_store import MARKER
from foley_server.jobs.store import Store
from harness.api_server import ApiServer, api_server, await_serving
from harness.models import replace_model

ENVELOPE = np.abs(np.sin(np.arange(200) / 20)).astype(np.float32)


def sound(steps: int, seed: int = 0) -> dict[str, Any]:
    """Return arguments of `FoleyClient.generate` and `FoleyClient.create`."""
    return {"envelope": ENVELOPE, "text": "glass", "steps": steps, "seed": seed}


def memory_prefix(server: ApiServer) -> str:
    """Return the prefix of the names of its Triton's shared-memory regions, which is unique to this Triton."""
    (prefix,) = (word.rpartition("=")[2] for word in server.triton().cmdline() if "shm-region-prefix-name" in word)
    return prefix


def shared_memory(prefix: str) -> set[str]:
    return {path.name for path in Path("/dev/shm").glob(f"{prefix}*")}


def wait_until(condition: Callable[[], bool], timeout_s: float = 30) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture(scope="module")
def server(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """A server for the tests that crash its Triton; `test_sigterm_drains_running_work` ends it."""
    with api_server(tmp_path_factory.mktemp("api"), bundle=tiny_bundle, running=2) as server:
        yield server


def generation_error(
    client: FoleyClient, arguments: dict[str, Any], on_progress: OnProgress = ignore_progress
) -> FoleyError | None:
    """Return the error that a generation with `arguments` ends with, or None."""
    try:
        client.generate(**arguments, on_progress=on_progress)
    except FoleyError as error:
        return error
    return None


def start_denoising(
    pool: ThreadPoolExecutor, client: FoleyClient, arguments: dict[str, Any]
) -> "Future[FoleyError | None]":
    """Start a generation, and return its future once it is denoising."""
    denoising = threading.Event()

    def on_progress(progress: Progress) -> None:
        if progress.stage == "denoise" and progress.done:
            denoising.set()

    call = pool.submit(generation_error, client, arguments, on_progress)
    assert denoising.wait(60)
    return call


@pytest.mark.parametrize("victim", ["Triton", "a model's process"])
def test_requests_survive_triton_crash(server: ApiServer, victim: str) -> None:
    """Requests in progress start again on the next Triton; new ones are refused until it is ready."""
    prefix = memory_prefix(server)
    memory = len(shared_memory(prefix))
    assert memory
    with server.client() as client, ThreadPoolExecutor(2) as pool:
        calls = [start_denoising(pool, client, sound(100, seed)) for seed in range(2)]
        triton = server.triton()
        (triton if victim == "Triton" else triton.children()[0]).kill()
        wait_until(lambda: not client.serving())
        refused = generation_error(client, sound(1))
        assert isinstance(refused, ServerUnavailable)
        assert refused.retry_after_s
        await_serving(server)
        assert [call.result(timeout=120) for call in calls] == [None, None]
        assert generation_error(client, sound(2)) is None
    assert server.process.poll() is None
    assert not shared_memory(prefix)
    assert len(shared_memory(memory_prefix(server))) == memory


def denoised(job: GenerationJob) -> int:
    """Return the number of completed denoising steps."""
    progress = job.status.progress
    return progress.done if progress and progress.stage == "denoise" else 0


@pytest.mark.long
def test_job_survives_triton_crash(server: ApiServer) -> None:
    with server.client(max_retries=4) as client:
        job = client.create(**sound(200, seed=5))
        wait_until(lambda: denoised(job) > 0)
        server.triton().kill()
        (take,) = job.wait().takes
        await_serving(server)
        (again,) = client.generate(**sound(200, seed=5)).takes
    np.testing.assert_array_equal(take.waveform, again.waveform)


def test_sigterm_drains_running_work(server: ApiServer) -> None:
    """Health changes first and running requests complete. The last test of this server, which it ends."""
    written = len(server.log.read_text())
    with server.client() as client:
        family = server.family()
        with ThreadPoolExecutor(1) as pool:
            call = start_denoising(pool, client, sound(100))
            server.terminate()
            wait_until(lambda: not client.serving())
            refused = generation_error(client, sound(1))
            assert isinstance(refused, ServerUnavailable)
            assert refused.retry_after_s
            assert not call.done()
            assert call.result(timeout=60) is None
        assert server.process.wait(60) == 0
        assert not psutil.wait_procs(family, 5)[1]
    assert "Traceback" not in server.log.read_text()[written:]


def test_drain_ends_after_grace_period_with_retryable_errors(triton: TritonClient, tmp_path: Path) -> None:
    """Neither an endless request nor an idle connection delays the end."""
    with api_server(tmp_path, triton=triton.url, grace=1) as server, server.client() as client:
        job = client.create(**sound(1000, seed=1))
        with server.client() as idle, ThreadPoolExecutor(2) as pool:
            assert idle.serving()
            watching = pool.submit(job.wait)
            call = start_denoising(pool, client, sound(1000))
            began = time.monotonic()
            server.terminate()
            errors = [call.result(timeout=30), watching.exception(timeout=30)]
            assert server.process.wait(30) == 0
        for error in errors:
            assert isinstance(error, ServerUnavailable)
            assert error.retry_after_s
        assert time.monotonic() - began < 15
    store = Store(f"sqlite:///{tmp_path}/data/generations.sqlite")
    (row,) = store.page("everyone", 2**62, 2)
    assert (f"operations/{row.id}", row.state, row.attempts) == (job.name, "queued", 0)  # it runs again after a restart


HANGING = """
import time
from pathlib import Path

from foley_server.backend import network_model


class TritonPythonModel(network_model.TritonPythonModel):
    def execute(self, requests):
        while Path({file!r}).exists():
            time.sleep(0.05)
        return super().execute(requests)
"""


@pytest.fixture
def hanging(tmp_path: Path) -> Path:
    """A model repository whose denoiser hangs while the file `hang` exists in it."""
    models = tmp_path / "models"
    return replace_model(models, "denoiser", HANGING.format(file=str(models / "hang")))


def test_request_timeout_applies_while_model_hangs(tiny_bundle: Path, tmp_path: Path, hanging: Path) -> None:
    """The time limit of a request applies although the call to Triton cannot be interrupted; Triton is restarted."""
    settings = {"bundle": tiny_bundle, "models": hanging, "request_timeout": 2, "hang_timeout": 4, "running": 1}
    with api_server(tmp_path, **settings) as server, server.client() as client:
        triton = server.triton()
        (hanging / "hang").touch()
        assert isinstance(generation_error(client, sound(1)), TimedOut)
        assert triton.is_running()  # the limit ended the request, not the restart
        wait_until(lambda: not client.serving())
        (hanging / "hang").unlink()
        await_serving(server)
        assert generation_error(client, sound(1)) is None
    assert "has not responded for" in server.log.read_text()


def test_sigterm_ends_server_while_model_hangs(tiny_bundle: Path, tmp_path: Path, hanging: Path) -> None:
    with api_server(tmp_path, bundle=tiny_bundle, models=hanging, grace=1) as server, server.client() as client:
        job = client.create(**sound(1000, seed=1))
        with ThreadPoolExecutor(1) as pool:
            call = start_denoising(pool, client, sound(1000))
            (hanging / "hang").touch()
            server.terminate()
            assert isinstance(call.result(timeout=60), ServerUnavailable)
            assert server.process.wait(60) == 0
    store = Store(f"sqlite:///{tmp_path}/data/generations.sqlite")
    (row,) = store.page("everyone", 2**62, 2)
    store.close()
    assert (f"operations/{row.id}", row.state) == (job.name, "queued")


def test_server_without_triton_queues_jobs_and_stops(tiny_bundle: Path, tmp_path: Path) -> None:
    """It accepts jobs, answers status requests, and stops on SIGTERM."""
    with (
        embedded_triton(tiny_bundle) as triton,
        api_server(tmp_path, triton=triton.url) as server,
        server.client() as client,
    ):
        port = int(triton.url.rpartition(":")[2])
        listening = (one for one in psutil.net_connections("tcp") if one.status == "LISTEN")
        psutil.Process(next(one.pid for one in listening if one.laddr.port == port)).kill()
        wait_until(lambda: not client.serving())
        job = client.create(**sound(1))
        for _ in range(20):
            assert job.status.state == "queued"
        server.terminate()
        assert server.process.wait(60) == 0


def test_killed_server_resumes_every_job_once(triton: TritonClient, tmp_path: Path) -> None:
    """SIGKILL during work (the soak test does it at random times): acknowledged jobs exist once, with their sound."""
    requests = {str(uuid.uuid4()): sound(30, seed) for seed in range(4)}
    with api_server(tmp_path, triton=triton.url, running=2) as server, server.client() as client:
        names = {request_id: client.create(**one, request_id=request_id).name for request_id, one in requests.items()}
        wait_until(lambda: any(one.state == "running" for one in client.jobs()))
        server.kill()
    with api_server(tmp_path, triton=triton.url) as server, server.client() as client:
        assert {one.name for one in client.jobs()} == set(names.values())
        for request_id, one in requests.items():
            (take,) = client.job(names[request_id]).wait().takes
            (expected,) = client.generate(**one).takes
            np.testing.assert_array_equal(take.waveform, expected.waveform)
        assert {one.state for one in client.jobs()} == {"succeeded"}
        folder, kept = tmp_path / "data" / "media", {name.split("/")[1] for name in names.values()}
        wait_until(lambda: {path.name for path in folder.iterdir()} == {MARKER, *kept})
    assert not list((tmp_path / "data").glob("uploads-*"))


@pytest.mark.long
def test_crash_leaves_no_processes_ports_or_shared_memory(tiny_bundle: Path, tmp_path: Path) -> None:
    """It leaves no process, port or shared memory; the next start removes what a crash could not."""
    with api_server(tmp_path, bundle=tiny_bundle) as server:
        family = server.family()
        prefix = memory_prefix(server)
        assert shared_memory(prefix)
        assert {one.name() for one in family} >= {"tritonserver"}
        subprocess.run(["kill", "-SIGSEGV", str(server.process.pid)], check=True)
        assert server.process.wait(60) == -11
        assert not psutil.wait_procs(family, 30)[1]
    with api_server(tmp_path, bundle=tiny_bundle) as server:
        server.terminate()
        assert server.process.wait(60) == 0
    assert not shared_memory(prefix)
    listening = {f"{c.laddr.ip}:{c.laddr.port}" for c in psutil.net_connections("tcp") if c.status == "LISTEN"}
    assert not listening & {server.grpc, server.metrics}


def test_startup_error_is_one_sentence_with_exit_code_2(tmp_path: Path) -> None:
    command = ["foley-server", "api", f"--data={tmp_path / 'data'}", f"--bundle={tmp_path / 'none'}"]
    command[0] = str(Path(sys.executable).with_name(command[0]))
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith("error: no bundle at ")
    assert len(result.stderr.strip().splitlines()) == 1


def test_sigterm_while_the_database_does_not_respond(tmp_path: Path) -> None:
    """A start that waits for something can be ended, too."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(60)
        store = f"postgresql://foley@127.0.0.1:{silent.getsockname()[1]}/foley"
        command = [Path(sys.executable).with_name("foley-server"), "api", f"--data={tmp_path / 'data'}"]
        ports = ["--port=0", "--metrics-port=0", "--triton=127.0.0.1:1", f"--store={store}"]
        with subprocess.Popen([*command, *ports], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            connection, _ = silent.accept()
            with connection:
                process.terminate()
                output, errors = process.communicate(timeout=60)
    assert (process.returncode, output) == (0, b"")
    assert b"Traceback" not in errors
