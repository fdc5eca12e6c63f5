"""gRPC channels and the proxy of the environment."""

import socket
from collections.abc import Iterator

import grpc
import pytest

from foley_client.channel import Channel
from foley_pipeline.grpc_options import is_this_machine

CHECK = "/grpc.health.v1.Health/Check"


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A listener that the environment names as proxy; it never responds."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(20)
        for name in ("grpc_proxy", "https_proxy", "http_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{listener.getsockname()[1]}")
        for name in ("no_grpc_proxy", "no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        yield listener


def test_remote_host_is_reached_through_proxy(proxy: socket.socket) -> None:
    with Channel("grpc://foley.example:8001").open() as channel:
        call = channel.unary_unary(CHECK).future(b"", timeout=20)
        connection, _ = proxy.accept()
        assert connection.recv(100).startswith(b"CONNECT foley.example:8001")
        call.cancel()
        connection.close()


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_local_host_bypasses_proxy(proxy: socket.socket, host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(20)
        with Channel(f"grpc://{host}:{server.getsockname()[1]}").open() as channel:
            call = channel.unary_unary(CHECK).future(b"", timeout=20)
            connection, _ = server.accept()
            assert connection.recv(100).startswith(b"PRI * HTTP/2.0")
            with pytest.raises(grpc.FutureTimeoutError):
                call.result(0)
            call.cancel()
            connection.close()


@pytest.mark.parametrize("target", ["LOCALHOST:1", "127.1.2.3:1", "[::1]:8001", "0.0.0.0:8001", "[::]:1"])
def test_local_targets(target: str) -> None:
    assert is_this_machine(target)


@pytest.mark.parametrize("target", ["localhost.example:1", "10.0.0.1:1", "[2001:db8::1]:1", "127.0.0.1.example:80"])
def test_remote_targets(target: str) -> None:
    assert not is_this_machine(target)
