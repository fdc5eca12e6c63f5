"""With a proxy in the environment, servers on this machine are reached directly."""

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.request import ProxyHandler, build_opener

import pytest

from harness.api_server import api_server

BIN = Path(__file__).resolve().parents[2] / ".venv" / "bin"
PROXY_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy", "HTTPS_PROXY", "HTTP_PROXY", "all_proxy", "ALL_PROXY")


@pytest.fixture(params=["unresponsive", pytest.param("refusing", marks=pytest.mark.long)])
def environment(request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """An environment in which all proxy variables name a proxy that does not work."""
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    with socket.socket() as proxy:
        proxy.bind(("127.0.0.1", 0))
        if request.param == "unresponsive":
            proxy.listen()
        yield kept | dict.fromkeys(PROXY_VARIABLES, f"http://127.0.0.1:{proxy.getsockname()[1]}")


def run(environment: dict[str, str], folder: Path, *arguments: object) -> str:
    command = [BIN / str(arguments[0]), *map(str, arguments[1:])]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_calls_to_triton_bypass_proxy(
    environment: dict[str, str], tiny_bundle: Path, video: Path, tmp_path: Path
) -> None:
    generate = ["foley", "generate", video, "--text=wood", "--steps=2"]
    run(environment, tmp_path, *generate, f"--bundle={tiny_bundle}", "-o", "own.wav")

    command = [BIN / "foley-server", "run", f"--bundle={tiny_bundle}", "--grpc-port=0", "--metrics-port=0"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            ready = server.stdout.readline()
            assert ready.startswith("ready ")
            port = ready.split()[1].rsplit(":", 1)[1]
            run(environment, tmp_path, *generate, f"--server=localhost:{port}", "--loop=server", "-o", "run.wav")
            run(environment, tmp_path, "foley-server", "health", f"localhost:{port}")
        finally:
            server.terminate()
    assert {path.name for path in tmp_path.iterdir()} == {"own.wav", "run.wav"}


def test_calls_to_public_api_bypass_proxy(
    environment: dict[str, str], tiny_bundle: Path, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in PROXY_VARIABLES:
        monkeypatch.setenv(name, environment[name])
    for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    with api_server(tmp_path, bundle=tiny_bundle) as server:
        run(environment, tmp_path, "foley", "generate", video, "--text=wood", f"--server={server.grpc}", "-o", "x.wav")
        run(environment, tmp_path, "foley-server", "health", server.grpc)
        with build_opener(ProxyHandler({})).open(f"http://{server.metrics}/metrics", timeout=60) as page:
            assert b"nv_inference_request_success" in page.read()
    assert (tmp_path / "x.wav").is_file()
