"""Real Tritons in a pool: replaced, broken, hanging, found in DNS, and stopped at any time."""

import json
import logging
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from foley.bundle import Bundle, read
from foley.errors import FoleyError, ServerFailure, ServerUnavailable, SettingError
from foley_client.embedded import embedded_triton
from foley_pipeline.triton import TritonClient
from foley_server.launcher import pool as module
from foley_server.launcher import supervisor as supervisor_module
from foley_server.launcher.pool import TritonPool
from foley_server.launcher.supervisor import EmbeddedTriton
from foley_server.launcher.triton import TritonServer, claim_port, serve
from harness.api_server import api_server
from harness.models import REPOSITORY, replace_model
from harness.settled import settled

LATENTS = np.zeros((1, 8, 256, 16), np.float32)
FAILED = ServerFailure("the request failed")
DEMO = REPOSITORY.parent / "bundles" / "demo"

UNRELIABLE = """
import os
import time
from pathlib import Path

from foley_server.backend import network_model

FOLDER = Path({folder!r})


class TritonPythonModel(network_model.TritonPythonModel):
    def initialize(self, args):
        while (FOLDER / "loading").exists():
            time.sleep(0.05)
        super().initialize(args)

    def _run(self, call):
        while (FOLDER / "hang").exists():
            time.sleep(0.05)
        if (FOLDER / "print").exists():
            print("a model's own words", flush=True)
        if (FOLDER / "error").exists():
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        if (FOLDER / "nan").exists():
            call.inputs["latents"] = call.inputs["latents"] * float("nan")
        return super()._run(call)
"""


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A model repository whose denoiser fails, in the way of their names, while files exist in it."""
    folder = tmp_path / "models"
    return replace_model(folder, "denoiser", UNRELIABLE.format(folder=str(folder)))


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_module, "MAX_BACKOFF_S", 1.0)
    monkeypatch.setattr(module, "RESOLVE_S", 0.2)


@contextmanager
def running_pool(source: EmbeddedTriton | list[str], hang_timeout_s: float = 300.0) -> Iterator[tuple[TritonPool, Any]]:
    """Run a pool; yields it with the list of the changes that it has reported."""
    changes = list[bool]()
    pool = TritonPool(source, changes.append, hang_timeout_s)
    pool.start()
    try:
        yield pool, changes
    finally:
        pool.stop()


def embedded(models: Path, bundle: Path) -> EmbeddedTriton:
    return EmbeddedTriton("here", models, read(bundle), None)


def wait_until(condition: Callable[[], object], timeout_s: float = 60) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def steps(client: TritonClient) -> int:
    return int(client.statistics("denoiser").get("inference_count", 0))


def denoise(client: TritonClient) -> None:
    stage = client.stages["denoiser"]
    client.infer("denoiser", **{one.name: np.ones((1, *map(int, one.shape))) for one in stage.inputs})


def kill(server: TritonServer) -> None:
    server.process.kill()
    server.process.wait()


class Switch:
    """A TCP proxy whose connections can be moved to another server, as when an address gets another process."""

    def __init__(self, server: str) -> None:
        self.server = server
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._sockets: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                host, port = self.server.rsplit(":", 1)
                server = socket.create_connection((host, int(port)))
                self._sockets += [client, server]
                for source, sink in ((client, server), (server, client)):
                    threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)

    def to(self, server: str) -> None:
        self.server = server
        for one in self._sockets:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.close()
        self.to(self.server)


def test_silent_reconnection_never_reaches_another_bundle(triton: TritonClient, demo_triton: TritonClient) -> None:
    """gRPC reconnects within milliseconds, possibly before anyone can notice: the calls themselves are refused."""
    switch = Switch(triton.url)
    before = steps(demo_triton)
    try:
        with TritonClient(switch.url) as client, ThreadPoolExecutor(4) as threads:
            done, errors = threading.Event(), list[FoleyError]()

            def call() -> None:
                while not done.is_set():
                    try:
                        denoise(client)
                    except FoleyError as error:
                        errors.append(error)

            for _ in range(4):
                threads.submit(call)
            try:
                wait_until(lambda: steps(triton) > 10)
                switch.to(demo_triton.url)
                wait_until(lambda: sum("another bundle" in str(error) for error in errors) > 20)
                assert client.lost
                switch.to(triton.url)  # the old one again: the calls continue
                answered = steps(triton)
                wait_until(lambda: steps(triton) > answered)
            finally:
                done.set()
        assert {type(error) for error in errors} == {ServerUnavailable}
        assert settled(lambda: steps(demo_triton)) == before
    finally:
        switch.close()


def test_stream_is_refused_by_another_bundle(triton: TritonClient, demo_triton: TritonClient) -> None:
    switch = Switch(triton.url)
    with TritonClient(switch.url) as client:
        switch.to(demo_triton.url)
        inputs = {
            one.name: np.zeros(1024 if one.name == "envelope" else 512) for one in client.stages["generate"].inputs
        }
        with pytest.raises(ServerUnavailable, match="another bundle"):
            list(client.stream("generate", **{**inputs, "options": [b"{}"]}))
    switch.close()


def test_remote_triton_is_awaited_and_replaced(tiny_bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Started later than the API, killed, and replaced by one with another bundle at the same address."""
    port = claim_port("127.0.0.1", 0)
    url = f"127.0.0.1:{port}"

    def serving(bundle: Bundle) -> Any:
        return serve(REPOSITORY, bundle, grpc_port=port)

    with running_pool([url]) as (pool, changes):
        wait_until(lambda: "foley-server run" in caplog.text)  # says what to do
        assert not pool.started.done()
        with pytest.raises(ServerUnavailable) as raised:
            pool.any()
        assert raised.value.retry_after_s
        with serving(read(tiny_bundle)) as first:
            pool.started.result(60)
            client = pool.client(url)
            wait_until(lambda: steps(client) == 1)  # the canary; Triton counts a call after it has responded
            denoise(client)
            assert pool.statuses[url].bundle_sha256 == client.versions["bundle_sha256"]
            kill(first)
        wait_until(lambda: not pool.ready)
        assert pool.statuses[url].bundle_sha256 is None
        with serving(read(DEMO)):
            wait_until(lambda: pool.available() == [url])
            with pytest.raises(ServerUnavailable):
                denoise(client)
            second = pool.any()
            assert second.versions["bundle"] != client.versions["bundle"]
            wait_until(lambda: steps(second) == 1)
        wait_until(lambda: changes == [True, False, True, False])


def test_broken_embedded_triton_is_restarted(tiny_bundle: Path, models: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It says that it is ready, and every step fails, as after an error of the GPU that does not go away."""
    with running_pool(embedded(models, tiny_bundle)) as (pool, changes):
        pool.started.result(60)
        client = pool.client("here")
        assert not pool.failed("here", FAILED)
        (process,) = tritons()
        (models / "error").touch()
        with pytest.raises(ServerFailure, match="illegal memory access"):
            denoise(client)
        assert client.ready()
        assert pool.failed("here", FAILED)
        assert pool.available() == []
        assert pool.failed("here", FAILED)
        wait_until(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE)
        wait_until(lambda: "is not available" in caplog.text)
        wait_until(lambda: tritons() and tritons()[0] != process)
        assert not pool.ready  # the restart did not help
        (models / "error").unlink()
        wait_until(lambda: pool.ready)
        denoise(pool.any())
        assert pool.statuses["here"].starts == 2
        assert changes == [True, False, True]
    assert not tritons()


def test_embedded_triton_that_cannot_compute_does_not_start(tiny_bundle: Path, models: Path) -> None:
    (models / "nan").touch()
    with running_pool(embedded(models, tiny_bundle)) as (pool, _):
        assert "not finite" in str(pool.started.exception(60))
        assert not pool.ready


def test_broken_remote_triton_is_taken_out(tiny_bundle: Path, models: Path, triton: TritonClient) -> None:
    """The other one works on; the broken one comes back when its steps succeed again."""
    with (
        serve(models, read(tiny_bundle)) as server,
        running_pool([server.endpoints.grpc, triton.url]) as (pool, changes),
    ):
        url = server.endpoints.grpc
        wait_until(lambda: pool.available() == [url, triton.url])
        client = pool.client(url)
        (models / "error").touch()
        assert pool.failed(url, FAILED)
        assert not pool.failed(triton.url, FAILED)
        assert pool.available() == [triton.url]
        assert pool.any().url == triton.url
        wait_until(lambda: not client.ready())  # so that requests in progress on it end
        (models / "error").unlink()
        wait_until(lambda: pool.available() == [url, triton.url])
        denoise(pool.client(url))
        assert server.process.poll() is None
        assert changes == [True]


def test_hanging_model_of_remote_triton_is_taken_out(tiny_bundle: Path, models: Path) -> None:
    with serve(models, read(tiny_bundle)) as server:
        url = server.endpoints.grpc
        with running_pool([url], hang_timeout_s=8.0) as (pool, changes), ThreadPoolExecutor(1) as threads:
            pool.started.result(60)
            (models / "hang").touch()
            call = threads.submit(denoise, pool.any())
            assert isinstance(call.exception(60), ServerUnavailable)
            wait_until(lambda: not pool.ready)
            (models / "hang").unlink()
            wait_until(lambda: pool.ready)
            assert changes == [True, False, True]


def test_stopped_model_process_is_a_failed_canary(tiny_bundle: Path, models: Path) -> None:
    with running_pool(embedded(models, tiny_bundle), hang_timeout_s=8.0) as (pool, _):
        pool.started.result(60)
        (triton,) = tritons()
        stub = next(one for one in triton.children() if any("/denoiser/" in word for word in one.cmdline()))
        stub.suspend()
        assert pool.failed("here", FAILED)
        wait_until(lambda: pool.ready)
        assert tritons() != [triton]


def tritons() -> list[psutil.Process]:
    """Return the Tritons that this process has started itself, not those of fixtures."""
    found = []
    for one in psutil.Process().children():
        with suppress(psutil.Error):
            if one.name() == "tritonserver" and one.status() != psutil.STATUS_ZOMBIE:
                found.append(one)
    return found


def test_stop_ends_start_of_embedded_triton(tiny_bundle: Path, models: Path) -> None:
    (models / "loading").touch()
    with running_pool(embedded(models, tiny_bundle)) as (pool, changes):
        wait_until(lambda: any(one.children() for one in tritons()))
        (triton,) = tritons()
        family = [triton, *triton.children()]
        began = time.monotonic()
        pool.stop()
        assert time.monotonic() - began < 20  # the start itself would take for ever
        assert not psutil.wait_procs(family, 20)[1]
        assert pool.started.cancelled()
        assert changes == []


def test_stop_ends_while_a_call_hangs(tiny_bundle: Path, models: Path) -> None:
    with ThreadPoolExecutor(1) as threads, running_pool(embedded(models, tiny_bundle)) as (pool, _):
        pool.started.result(60)
        (models / "hang").touch()
        client = pool.any()
        call = threads.submit(denoise, client)
        wait_until(lambda: client.silence_s() > 0.5)
        pool.stop()
        assert isinstance(call.exception(30), ServerUnavailable)
    assert not tritons()


@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT"])
def test_signal_ends_start_of_foley_server_run(tiny_bundle: Path, models: Path, number: str) -> None:
    (models / "loading").touch()
    command = [Path(sys.executable).with_name("foley-server"), "run", "--grpc-port=0", "--metrics-port=0"]
    command += [f"--bundle={tiny_bundle}", f"--models={models}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        process = psutil.Process(server.pid)
        wait_until(lambda: any("stub" in one.name() for one in process.children(recursive=True)))
        family = process.children(recursive=True)
        subprocess.run(["kill", f"-{number}", str(server.pid)], check=True)
        output, errors = server.communicate(timeout=30)
        assert (server.returncode, output, errors) == (0, "", "")
        assert not psutil.wait_procs(family, 20)[1]


def test_log_of_triton_is_passed_on(tiny_bundle: Path, models: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "triton")
    with running_pool(embedded(models, tiny_bundle)) as (pool, _):
        pool.started.result(60)
        (run,) = {Path(word.partition("=")[2]).parent for word in tritons()[0].cmdline() if "model-repository" in word}
        assert not list(run.glob("*.log"))
    messages = [one.getMessage() for one in caplog.records if one.name == "triton"]
    assert any("successfully loaded 'denoiser'" in one for one in messages)
    assert any("Waiting for in-flight requests" in one for one in messages)


def test_foley_server_run_writes_warnings_to_standard_error(tiny_bundle: Path, models: Path, tmp_path: Path) -> None:
    (models / "print").touch()
    command = [Path(sys.executable).with_name("foley-server"), "run", "--grpc-port=0", "--metrics-port=0"]
    command += [f"--bundle={tiny_bundle}", f"--models={models}"]
    with (
        (tmp_path / "errors").open("w+") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as server,
    ):
        assert server.stdout is not None
        url = dict(part.split("=", 1) for part in server.stdout.readline().split()[1:])["grpc"]
        with TritonClient(url) as client:
            denoise(client)
        wait_until(lambda: "triton: WARNING: a model's own words\n" in (tmp_path / "errors").read_text())
        server.terminate()
        assert server.wait(60) == 0


def test_api_logs_what_triton_logs(tiny_bundle: Path, tmp_path: Path) -> None:
    with api_server(tmp_path, bundle=tiny_bundle) as server:
        records = [json.loads(line) for line in server.log.read_text().splitlines()]
    (record,) = (one for one in records if "successfully loaded 'denoiser'" in one["message"])
    assert (record["logger"], record["level"]) == ("triton", "INFO")


def test_sigterm_ends_start_of_api(tiny_bundle: Path, models: Path, tmp_path: Path) -> None:
    (models / "loading").touch()
    command = [Path(sys.executable).with_name("foley-server"), "api", "--port=0", "--metrics-port=0"]
    command += [f"--bundle={tiny_bundle}", f"--models={models}", f"--data={tmp_path / 'data'}"]
    with (tmp_path / "log").open("w") as log, subprocess.Popen(command, stderr=log) as server:
        process = psutil.Process(server.pid)
        wait_until(lambda: any("stub" in one.name() for one in process.children(recursive=True)))
        family = process.children(recursive=True)
        server.terminate()
        assert server.wait(30) == 0
        assert not psutil.wait_procs(family, 20)[1]
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_dns_name_stands_for_its_addresses(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Addresses come and go; the name server that answers is replaced, because a test cannot configure it."""
    found: list[str] | OSError = socket.gaierror(-2, "Name or service not known")
    look_up = socket.getaddrinfo

    def getaddrinfo(name: Any, port: Any, *arguments: Any, **options: Any) -> Any:
        if name != "tritons.example":
            return look_up(name, port, *arguments, **options)
        if isinstance(found, OSError):
            raise found
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port)) for one in found]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    port = claim_port("127.0.0.1", 0)
    first, second = f"127.0.0.1:{port}", f"127.0.0.2:{port}"
    with running_pool([f"dns:///tritons.example:{port}"]) as (pool, changes):
        wait_until(lambda: "cannot look up tritons.example" in caplog.text)
        with (
            serve(REPOSITORY, read(tiny_bundle), "127.0.0.1", port) as one,
            serve(REPOSITORY, read(DEMO), "127.0.0.2", port) as other,
        ):
            found = ["127.0.0.1"]
            wait_until(lambda: pool.available() == [first])
            found = ["127.0.0.1", "127.0.0.2"]
            wait_until(lambda: pool.available() == [first, second])
            wait_until(
                lambda: "the Tritons serve different bundles" in caplog.text
            )  # both work, as in a rolling update
            assert pool.client(first).versions["bundle"] != pool.client(second).versions["bundle"]
            found = ["127.0.0.2"]
            wait_until(lambda: pool.available() == [second])
            denoise(pool.client(first))  # work in progress on it continues
            found = socket.gaierror(-3, "Temporary failure in name resolution")
            wait_until(lambda: caplog.text.count("cannot look up tritons.example") == 2)
            assert pool.available() == [second]
            kill(one)
            found = ["127.0.0.2"]
            wait_until(lambda: list(pool.statuses) == [second])  # dropped
            with pytest.raises(ServerUnavailable, match="is gone"):
                pool.client(first)
            assert pool.failed(first, FAILED)
            assert changes == [True]
            assert caplog.text.count("the Tritons serve different bundles") == 1
            kill(other)
            wait_until(lambda: not pool.ready)


def test_dns_name_is_resolved(triton: TritonClient) -> None:
    """With the system's resolver."""
    port = int(triton.url.rpartition(":")[2])
    with running_pool([f"dns:///localhost:{port}"]) as (pool, _):
        pool.started.result(60)
        assert pool.any().url in (f"127.0.0.1:{port}", f"[::1]:{port}")


@pytest.mark.parametrize("addresses", [[], ["nowhere"], ["dns:///nowhere"], ["dns://8.8.8.8/a:1"], ["host:1", "host"]])
def test_malformed_addresses_are_rejected(addresses: list[str]) -> None:
    with pytest.raises(SettingError, match=r"HOST:PORT|NAME:PORT"):
        TritonPool(addresses, lambda ready: None)


def test_stop_ends_connecting() -> None:
    """To an address that drops packets, as that of a machine that is off."""
    with running_pool(["192.0.2.1:8001", "dns:///localhost:9"]) as (pool, _):
        wait_until(lambda: len(pool.statuses) > 1)
        began = time.monotonic()
        pool.stop()
        assert time.monotonic() - began < 20
        assert pool.started.cancelled()


@pytest.fixture(scope="module")
def demo_triton() -> Iterator[TritonClient]:
    with embedded_triton(DEMO) as server:
        yield server
