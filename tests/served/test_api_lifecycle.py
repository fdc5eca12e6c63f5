"""The API with a Triton of its own: what happens when one of them is stopped or killed, at any moment."""

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
from foley_server.jobs.store import Store
from harness.api_server import ApiServer, api_server, await_serving
from harness.models import replace_model

ENVELOPE = np.abs(np.sin(np.arange(200) / 20)).astype(np.float32)


def sound(steps: int, seed: int = 0) -> dict[str, Any]:
    """What to generate, for `FoleyClient.generate` and `FoleyClient.create`."""
    return {"envelope": ENVELOPE, "text": "glass", "steps": steps, "seed": seed}


def memory_prefix(server: ApiServer) -> str:
    """The prefix of the shared-memory regions of its Triton, which no other Triton has."""
    (prefix,) = (word.rpartition("=")[2] for word in server.triton().cmdline() if "shm-region-prefix-name" in word)
    return prefix


def shared_memory(prefix: str) -> set[str]:
    return {path.name for path in Path("/dev/shm").glob(f"{prefix}*")}


def until(what: Callable[[], bool], timeout_s: float = 30) -> None:
    end = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture(scope="module")
def server(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """One for the crashes of its Triton, and at last for its own end."""
    with api_server(tmp_path_factory.mktemp("api"), bundle=tiny_bundle, running=2) as server:
        yield server


def ends(client: FoleyClient, asked: dict[str, Any], on_progress: OnProgress = ignore_progress) -> FoleyError | None:
    """The error that the generation of `asked` ends with."""
    try:
        client.generate(**asked, on_progress=on_progress)
    except FoleyError as error:
        return error
    return None


def under_way(pool: ThreadPoolExecutor, client: FoleyClient, asked: dict[str, Any]) -> "Future[FoleyError | None]":
    """A generation that denoises now."""
    denoising = threading.Event()

    def on_progress(progress: Progress) -> None:
        if progress.stage == "denoise" and progress.done:
            denoising.set()

    call = pool.submit(ends, client, asked, on_progress)
    assert denoising.wait(60)
    return call


@pytest.mark.parametrize("victim", ["Triton", "a model's process"])
def test_one_crash_costs_the_requests_on_it_and_nothing_else(server: ApiServer, victim: str) -> None:
    """Checklist B4, 2 and 3; health follows, and Triton comes back by itself."""
    prefix = memory_prefix(server)
    memory = len(shared_memory(prefix))
    assert memory
    with server.client() as client, ThreadPoolExecutor(2) as pool:
        calls = [under_way(pool, client, sound(1000, seed)) for seed in range(2)]
        triton = server.triton()
        (triton if victim == "Triton" else triton.children()[0]).kill()
        for call in calls:
            error = call.result(timeout=30)
            assert isinstance(error, ServerUnavailable)
            assert error.retry_after_s
        until(lambda: not client.serving())
        refused = ends(client, sound(1))
        assert isinstance(refused, ServerUnavailable)
        assert refused.retry_after_s
        await_serving(server)
        assert ends(client, sound(2)) is None
    assert server.process.poll() is None
    assert not shared_memory(prefix)
    assert len(shared_memory(memory_prefix(server))) == memory


@pytest.mark.long  # the retry has tests of its own; this is both together
def test_a_client_that_may_try_again_does_not_notice_a_crash(server: ApiServer) -> None:
    with server.client(max_retries=9) as client, ThreadPoolExecutor(1) as pool:
        call = under_way(pool, client, sound(300))
        server.triton().kill()
        assert call.result(timeout=60) is None
    await_serving(server)


def denoised(job: GenerationJob) -> int:
    """The number of its denoising steps so far."""
    progress = job.status.progress
    return progress.done if progress and progress.stage == "denoise" else 0


@pytest.mark.long
def test_a_generation_that_was_left_survives_a_crash_of_triton(server: ApiServer) -> None:
    with server.client(max_retries=4) as client:
        job = client.create(**sound(200, seed=5))
        until(lambda: denoised(job) > 0)
        server.triton().kill()
        (take,) = job.wait().takes
        await_serving(server)
        (again,) = client.generate(**sound(200, seed=5)).takes
    np.testing.assert_array_equal(take.waveform, again.waveform)


def test_sigterm_lets_running_work_finish_and_takes_no_more_on(server: ApiServer) -> None:
    """Checklist B4, 5: health turns first, deploys lose no request. The last test of this server, which it ends."""
    written = len(server.log.read_text())
    with server.client() as client:
        family = server.family()
        with ThreadPoolExecutor(1) as pool:
            call = under_way(pool, client, sound(100))
            server.terminate()
            until(lambda: not client.serving())
            refused = ends(client, sound(1))
            assert isinstance(refused, ServerUnavailable)
            assert refused.retry_after_s
            assert not call.done()
            assert call.result(timeout=60) is None
        assert server.process.wait(60) == 0
        assert not psutil.wait_procs(family, 5)[1]
    assert "Traceback" not in server.log.read_text()[written:]


def test_the_drain_is_bounded_and_what_it_ends_may_be_tried_again(triton: TritonClient, tmp_path: Path) -> None:
    """Checklist B4, 6: a request that does not end, and a connection that does nothing, hold nobody up."""
    with api_server(tmp_path, triton=triton.url, grace=1) as server, server.client() as client:
        job = client.create(**sound(1000, seed=1))
        with server.client() as idle, ThreadPoolExecutor(2) as pool:
            assert idle.serving()
            watching = pool.submit(job.wait)
            call = under_way(pool, client, sound(1000))
            began = time.monotonic()
            server.terminate()
            errors = [call.result(timeout=30), watching.exception(timeout=30)]
            assert server.process.wait(30) == 0
        for error in errors:
            assert isinstance(error, ServerUnavailable)
            assert error.retry_after_s
        assert time.monotonic() - began < 15
    store = Store(tmp_path / "data" / "generations.sqlite")
    (row,) = store.page("everyone", 2**62, 2)
    assert (f"operations/{row.id}", row.state, row.attempts) == (job.name, "queued", 0)  # it begins again


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
    """A model repository whose denoiser hangs while there is a file `hang` in it."""
    models = tmp_path / "models"
    return replace_model(models, "denoiser", HANGING.format(file=str(models / "hang")))


def test_a_model_that_hangs_costs_no_request_more_than_its_time(
    tiny_bundle: Path, tmp_path: Path, hanging: Path
) -> None:
    """A limit on a request holds although the call to Triton cannot be ended, and Triton is restarted."""
    settings = {"bundle": tiny_bundle, "models": hanging, "request_timeout": 2, "hang_timeout": 4, "running": 1}
    with api_server(tmp_path, **settings) as server, server.client() as client:
        triton = server.triton()
        (hanging / "hang").touch()
        assert isinstance(ends(client, sound(1)), TimedOut)
        assert triton.is_running()  # it was the limit that ended the request, not the restart
        until(lambda: not client.serving())
        (hanging / "hang").unlink()
        await_serving(server)
        assert ends(client, sound(1)) is None
    assert "has not responded for" in server.log.read_text()


def test_sigterm_ends_a_server_whose_model_hangs(tiny_bundle: Path, tmp_path: Path, hanging: Path) -> None:
    with api_server(tmp_path, bundle=tiny_bundle, models=hanging, grace=1) as server, server.client() as client:
        job = client.create(**sound(1000, seed=1))
        with ThreadPoolExecutor(1) as pool:
            call = under_way(pool, client, sound(1000))
            (hanging / "hang").touch()
            server.terminate()
            assert isinstance(call.result(timeout=60), ServerUnavailable)
            assert server.process.wait(60) == 0
    store = Store(tmp_path / "data" / "generations.sqlite")
    (row,) = store.page("everyone", 2**62, 2)
    store.close()
    assert (f"operations/{row.id}", row.state) == (job.name, "queued")


def test_a_server_without_its_triton_answers_and_ends(tiny_bundle: Path, tmp_path: Path) -> None:
    """It accepts work for later, goes on answering, and stops when asked to."""
    with (
        embedded_triton(tiny_bundle) as triton,
        api_server(tmp_path, triton=triton.url) as server,
        server.client() as client,
    ):
        port = int(triton.url.rpartition(":")[2])
        listening = (one for one in psutil.net_connections("tcp") if one.status == "LISTEN")
        psutil.Process(next(one.pid for one in listening if one.laddr.port == port)).kill()
        until(lambda: not client.serving())
        job = client.create(**sound(1))
        for _ in range(20):
            assert job.status.state == "queued"
        server.terminate()
        assert server.process.wait(60) == 0


def test_no_generation_is_lost_or_done_twice_when_the_server_is_killed(triton: TritonClient, tmp_path: Path) -> None:
    """kill -9 in the middle (the soak does it at any moment): what was acknowledged is there, once, with its sound."""
    asked = {str(uuid.uuid4()): sound(30, seed) for seed in range(4)}
    with api_server(tmp_path, triton=triton.url, running=2) as server, server.client() as client:
        names = {request_id: client.create(**one, request_id=request_id).name for request_id, one in asked.items()}
        until(lambda: any(one.state == "running" for one in client.jobs()))
        server.kill()
    with api_server(tmp_path, triton=triton.url) as server, server.client() as client:
        assert {one.name for one in client.jobs()} == set(names.values())
        for request_id, one in asked.items():
            (take,) = client.job(names[request_id]).wait().takes
            (expected,) = client.generate(**one).takes
            np.testing.assert_array_equal(take.waveform, expected.waveform)
        assert {one.state for one in client.jobs()} == {"succeeded"}
        folder = tmp_path / "data" / "media"
        assert {path.name for path in folder.iterdir()} == {name.split("/")[1] for name in names.values()}
    assert not list((tmp_path / "data").glob("uploads-*"))


@pytest.mark.long
def test_nothing_is_left_behind_by_a_crash(tiny_bundle: Path, tmp_path: Path) -> None:
    """Checklist B4, 4: no process, port or shared memory; what it cannot remove itself the next one does."""
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


def test_what_keeps_it_from_starting_is_one_sentence_and_an_exit_code(tmp_path: Path) -> None:
    command = ["foley-server", "api", f"--data={tmp_path / 'data'}", f"--bundle={tmp_path / 'none'}"]
    command[0] = str(Path(sys.executable).with_name(command[0]))
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith("error: no bundle at ")
    assert len(result.stderr.strip().splitlines()) == 1
