"""gRPC keepalive: a call to an unreachable Triton fails; a long call does not."""

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest

from foley.bundle import read
from foley.errors import ServerUnavailable
from foley.sampler import Sampling
from foley_client.embedded import embedded_triton
from foley_pipeline import grpc_options
from foley_pipeline.triton import TritonClient
from foley_server.launcher.triton import serve
from harness.models import replace_model

LATENTS = np.zeros((1, 8, 256, 16), np.float32)


class Proxy:
    """TCP proxy to a server that can drop all data without closing, as when a machine loses its network."""

    def __init__(self, server: str) -> None:
        host, port = server.rsplit(":", 1)
        self._server = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.silent = threading.Event()
        self._sockets: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._server)
                self._sockets += [client, server]
                for source, sink in ((client, server), (server, client)):
                    threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if not self.silent.is_set():
                    sink.sendall(data)

    def close(self) -> None:
        for one in (self._listener, *self._sockets):
            one.close()


@pytest.fixture
def proxy(triton: TritonClient) -> Iterator[Proxy]:
    proxy = Proxy(triton.url)
    yield proxy
    proxy.close()


def set_keepalive(monkeypatch: pytest.MonkeyPatch, after_ms: int, timeout_ms: int) -> None:
    """Shorten the keepalive times, which would otherwise delay the test by a minute."""
    options = {
        "grpc.keepalive_time_ms": after_ms,
        "grpc.keepalive_timeout_ms": timeout_ms,
        "grpc.http2.ping_timeout_ms": timeout_ms,
    }
    kept = [(name, options.get(name, value)) for name, value in grpc_options.KEEPALIVE]
    monkeypatch.setattr(grpc_options, "KEEPALIVE", kept)


def test_call_to_unreachable_server_fails(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    set_keepalive(monkeypatch, 1000, 1000)
    with TritonClient(proxy.url) as client, ThreadPoolExecutor() as pool:
        client.infer("latents_to_waveform", latents=LATENTS)
        proxy.silent.set()
        call = pool.submit(client.infer, "latents_to_waveform", latents=LATENTS)
        with pytest.raises(ServerUnavailable, match="connection to the server was lost"):
            call.result(45)


def test_stream_from_unreachable_server_fails(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    set_keepalive(monkeypatch, 1000, 1000)
    with TritonClient(proxy.url) as client, ThreadPoolExecutor() as pool:
        events = client.stream(
            "generate",
            envelope=np.zeros(1024),
            embedding=np.zeros(512),
            negative_embedding=np.zeros(512),
            options=[Sampling(steps=1000).encode(0)],
        )
        next(events)
        proxy.silent.set()
        with pytest.raises(ServerUnavailable, match="connection to the server was lost"):
            pool.submit(list, events).result(45)


@pytest.mark.long
def test_stopped_triton_is_detected_with_default_keepalive(tiny_bundle: Path) -> None:
    """Uses the default keepalive times."""
    with embedded_triton(tiny_bundle) as client, ThreadPoolExecutor() as pool:
        server = next(one for one in processes() if one.name() == "tritonserver")
        server.suspend()
        try:
            with pytest.raises(ServerUnavailable, match="connection to the server was lost"):
                pool.submit(client.infer, "latents_to_waveform", latents=LATENTS).result(100)
        finally:
            server.resume()


SLOW_MODEL = """
import time
from foley_server.backend.network_model import TritonPythonModel as Network

class TritonPythonModel(Network):
    def execute(self, requests):
        time.sleep(70)
        return super().execute(requests)
"""


@pytest.mark.long
def test_long_call_is_not_terminated(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton accepts the pings; with gRPC's defaults it would close the connection after three or four."""
    models = replace_model(tmp_path / "models", "vocoder", SLOW_MODEL)
    set_keepalive(monkeypatch, grpc_options.MIN_PING_INTERVAL_MS + 1000, 20_000)
    with serve(models, read(tiny_bundle)) as server, TritonClient(server.endpoints.grpc) as client:
        assert client.infer("latents_to_waveform", latents=LATENTS)["waveform"].any()


def processes() -> list[psutil.Process]:
    """Return the descendants of this process."""
    return psutil.Process().children(recursive=True)
