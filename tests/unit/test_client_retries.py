"""Retries of the clients, against a real gRPC server that fails first."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
import pytest

from foley.errors import FoleyError, Overloaded, ServerUnavailable
from foley_client import AsyncFoleyClient, FoleyClient, GenerationResult, Take, _wire
from foley_client._wire import retry_delay_s
from foley_client.channel import Channel
from foley_pipeline.api import foley_pb2 as pb
from foley_pipeline.api import foley_pb2_grpc
from foley_pipeline.api.messages import result_to_proto

ENVELOPE = np.full(100, 0.1, np.float32)


@dataclass
class Restarting(foley_pb2_grpc.FoleyServiceServicer):
    """Responds UNAVAILABLE without RetryInfo `failures` times, as a proxy does while a server restarts."""

    failures: int = 2
    calls: list[str] = field(default_factory=list)

    def _fail(self, name: str, context: grpc.ServicerContext) -> None:
        self.calls.append(name)
        if len(self.calls) <= self.failures:
            context.abort(grpc.StatusCode.UNAVAILABLE, "connection refused")

    def WatchGeneration(self, request, context):
        self._fail("watch", context)
        result = GenerationResult(ENVELOPE, [Take(np.zeros(0, np.float32), {"seed": 0})])
        yield pb.GenerateEvent(envelope_ready=pb.EnvelopeReady(envelope=pb.Envelope(rms=ENVELOPE)))
        yield pb.GenerateEvent(finished=result_to_proto("id", result))

    def Generate(self, request_iterator, context):
        self._fail("generate", context)
        yield from self.WatchGeneration(None, context)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Restarting, str]]:
    monkeypatch.setattr(_wire, "BACKOFF_S", 0.001)
    service, running = Restarting(), grpc.server(ThreadPoolExecutor(2))
    foley_pb2_grpc.add_FoleyServiceServicer_to_server(service, running)
    port = running.add_insecure_port("127.0.0.1:0")
    running.start()
    yield service, f"grpc://127.0.0.1:{port}"
    running.stop(None)


def wait(kind: str, url: str, max_retries: int = 3) -> None:
    if kind == "sync":
        with FoleyClient(url, max_retries=max_retries) as client:
            client.job("operations/1").wait()
        return

    async def call() -> None:
        async with AsyncFoleyClient(url, max_retries=max_retries) as client:
            await client.job("operations/1").wait()

    asyncio.run(call())


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_wait_survives_server_restart(server: tuple[Restarting, str], kind: str) -> None:
    service, url = server
    wait(kind, url)
    assert service.calls == ["watch"] * 3


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_retries_are_bounded(server: tuple[Restarting, str], kind: str) -> None:
    service, url = server
    with pytest.raises(ServerUnavailable):
        wait(kind, url, max_retries=1)
    assert service.calls == ["watch"] * 2


def test_generate_is_not_retried_without_retry_info(server: tuple[Restarting, str]) -> None:
    """Only RetryInfo states that a call which is not idempotent had no effect."""
    service, url = server
    with FoleyClient(url) as client, pytest.raises(ServerUnavailable):
        client.generate(envelope=ENVELOPE)
    assert service.calls == ["generate"]


def test_retry_delays_grow_are_capped_and_respect_retry_info() -> None:
    lost, busy = ServerUnavailable("gone"), Overloaded("busy")
    busy.retry_after_s = 5.0
    for retries in range(7):
        base = min(_wire.BACKOFF_S * 2.0 ** (retries + 1), _wire.MAX_BACKOFF_S)
        assert base <= retry_delay_s(lost, retries, 8, idempotent=True) <= 1.25 * base
        assert 5.0 <= retry_delay_s(busy, retries, 8, idempotent=False) <= 6.25
    assert len({retry_delay_s(busy, 0, 8, idempotent=False) for _ in range(20)}) > 1
    for error, idempotent in ((lost, False), (FoleyError("no"), True)):
        with pytest.raises(type(error)):
            retry_delay_s(error, 0, 8, idempotent)
    with pytest.raises(ServerUnavailable):
        retry_delay_s(lost, 8, 8, idempotent=True)


def test_channel_hides_token_and_has_default_ports() -> None:
    assert "secret" not in repr(Channel("grpcs://host", token="secret"))
    assert Channel("grpcs://host").target == "host:443"
    assert Channel("grpc://host").target == "host:8080"
    assert Channel("grpc://[::1]:9").target == "[::1]:9"


def test_certificate_variable_is_ignored_without_tls(repository: Path, tmp_path: Path) -> None:
    command = [Path(sys.executable).with_name("foley"), "generate", repository / "examples" / "steel.mp4"]
    done = subprocess.run(
        [*command, "--server", "localhost", "-o", tmp_path / "out.wav"],
        env={**os.environ, "FOLEY_CA": "/nowhere/ca.pem"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert "HOST:PORT" in done.stderr
