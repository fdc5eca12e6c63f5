"""TLS and mutual TLS: untrusted clients and servers are rejected, with both clients."""

import asyncio
import datetime
import os
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest
import trustme

from foley.errors import ServerUnavailable
from foley_client import AsyncFoleyClient, FoleyClient
from foley_pipeline.triton import TritonClient
from foley_server.api.tokens import entry, new_token
from harness.api_server import ApiServer, api_server
from harness.settled import settled

BIN = Path(__file__).resolve().parents[2] / ".venv" / "bin"
YESTERDAY = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(days=1)


@dataclass(frozen=True)
class Files:
    """Certificates on disk."""

    folder: Path
    token: str

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.pem"

    def pair(self, name: str) -> dict[str, Path]:
        return {"certificate": self.path(name), "key": self.path(f"{name}-key")}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("certificates")
    ours, others = trustme.CA(), trustme.CA()
    ours.cert_pem.write_to_path(folder / "ca.pem")
    others.cert_pem.write_to_path(folder / "other-ca.pem")
    for name, certificate in {
        "server": ours.issue_cert("localhost"),
        "client": ours.issue_cert("client@example.org"),
        "stranger": others.issue_cert("client@example.org"),
        "expired": ours.issue_cert("client@example.org", not_after=YESTERDAY),
        "expired-server": ours.issue_cert("localhost", not_after=YESTERDAY),
    }.items():
        certificate.private_key_pem.write_to_path(folder / f"{name}-key.pem")
        certificate.cert_chain_pems[0].write_to_path(folder / f"{name}.pem")
    token = new_token()
    (folder / "tokens.toml").write_text(entry("alice", token, ["generate", "read"], 1e6, 10))
    return Files(folder, token)


def tls(files: Files, name: str) -> dict[str, Path]:
    return {"tls_certificate": files.path(name), "tls_key": files.path(f"{name}-key")}


@pytest.fixture(scope="module")
def server(triton: TritonClient, files: Files, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """A server that requires client certificates."""
    with api_server(
        tmp_path_factory.mktemp("api"),
        triton=triton.url,
        address="localhost",
        tokens=files.folder / "tokens.toml",
        tls_client_ca=files.path("ca"),
        studio=True,
        studio_address="localhost",
        studio_port=0,
        **tls(files, "server"),
    ) as server:
        yield server


def test_valid_client_certificate_is_accepted(server: ApiServer, files: Files) -> None:
    url = f"grpcs://{server.grpc}"
    with FoleyClient(url, token=files.token, ca=files.path("ca"), **files.pair("client")) as client:
        embedding, _ = client.embed_prompt("glass")

    async def in_asyncio() -> None:
        async with AsyncFoleyClient(url, token=files.token, ca=files.path("ca"), **files.pair("client")) as client:
            np.testing.assert_array_equal((await client.embed_prompt("glass"))[0], embedding)

    asyncio.run(in_asyncio())


@pytest.mark.parametrize(
    ("scheme", "ca", "pair"),
    [
        ("grpc", None, None),
        ("grpcs", "ca", None),
        ("grpcs", "ca", "stranger"),
        ("grpcs", "ca", "expired"),
        ("grpcs", "other-ca", "client"),
        ("grpcs", None, "client"),
    ],
    ids=[
        "plaintext to a TLS port",
        "no certificate",
        "certificate of another CA",
        "an expired certificate",
        "untrusted server",
        "server not trusted by the system",
    ],
)
def test_invalid_certificates_are_rejected(
    server: ApiServer, files: Files, triton: TritonClient, scheme: str, ca: str | None, pair: str | None
) -> None:
    before = settled(lambda: triton.statistics("clap_text")["inference_count"])
    options = {"token": files.token, "ca": files.path(ca) if ca else None, **(files.pair(pair) if pair else {})}
    with FoleyClient(f"{scheme}://{server.grpc}", **options) as client, pytest.raises(ServerUnavailable):
        client.embed_prompt("glass")

    async def in_asyncio() -> None:
        async with AsyncFoleyClient(f"{scheme}://{server.grpc}", **options) as client:
            with pytest.raises(ServerUnavailable):
                await client.embed_prompt("glass")

    asyncio.run(in_asyncio())
    assert settled(lambda: triton.statistics("clap_text")["inference_count"]) == before


@pytest.mark.parametrize("pair", [None, "stranger", "expired", "client"])
def test_studio_requires_client_certificate(server: ApiServer, files: Files, pair: str | None) -> None:
    context = ssl.create_default_context(cafile=str(files.path("ca")))
    if pair:
        context.load_cert_chain(files.path(pair), files.path(f"{pair}-key"))
    if pair == "client":
        with urlopen(server.studio, timeout=20, context=context) as answer:
            assert answer.status == 200
        return
    with pytest.raises(OSError):  # noqa: PT011 - the type depends on which side closes first
        urlopen(server.studio, timeout=20, context=context).read()


def test_replaced_certificates_are_used_without_a_restart(triton: TritonClient, files: Files, tmp_path: Path) -> None:
    for name in ("ca", "server", "server-key"):
        shutil.copy(files.path(name), tmp_path)
    settings = {"tls_certificate": tmp_path / "server.pem", "tls_key": tmp_path / "server-key.pem"}
    studio = {"studio": True, "studio_address": "localhost", "studio_port": 0}
    with api_server(tmp_path, triton=triton.url, address="localhost", **settings, **studio) as server:
        url = f"grpcs://{server.grpc}"
        with FoleyClient(url, ca=files.path("ca")) as connected:
            assert connected.serving()
            renewed_ca = trustme.CA()
            renewed = renewed_ca.issue_cert("localhost")
            renewed_ca.cert_pem.write_to_path(tmp_path / "ca.pem")
            renewed.private_key_pem.write_to_path(tmp_path / "server-key.pem")
            renewed.cert_chain_pems[0].write_to_path(tmp_path / "server.pem")
            with FoleyClient(url, ca=tmp_path / "ca.pem") as client:
                assert client.serving()
            context = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
            with urlopen(server.studio, timeout=20, context=context) as answer:
                assert answer.status == 200
            assert connected.serving()  # on its connection, which was made with the first certificate
            with FoleyClient(url, ca=files.path("ca")) as client, pytest.raises(ServerUnavailable):
                client.serving()


def test_client_rejects_expired_server_certificate(triton: TritonClient, files: Files, tmp_path: Path) -> None:
    with (
        api_server(tmp_path, triton=triton.url, address="localhost", **tls(files, "expired-server")) as server,
        FoleyClient(f"grpcs://{server.grpc}", ca=files.path("ca")) as client,
        pytest.raises(ServerUnavailable),
    ):
        client.serving()


def test_tls_port_survives_garbage(server: ApiServer, files: Files) -> None:
    import socket

    for content in (b"GET / HTTP/1.1\r\n\r\n", os.urandom(4096), b"\x16\x03\x01\xff\xff" + b"\0" * 1000, b""):
        with socket.create_connection(("localhost", int(server.grpc.rsplit(":", 1)[1])), timeout=5) as raw:
            raw.sendall(content)
    with FoleyClient(
        f"grpcs://{server.grpc}", token=files.token, ca=files.path("ca"), **files.pair("client")
    ) as client:
        assert client.serving()


def test_cli_uses_tls_and_reports_tls_errors(server: ApiServer, files: Files, video: Path, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(files.token + "\n")

    def generate(*options: object, **environment: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [BIN / "foley", "generate", video, "--steps", "1", "-o", "out.wav", *map(str, options)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            env={**os.environ, **environment},
            check=False,
        )

    url = f"grpcs://{server.grpc}"
    certificates = ["--ca", files.path("ca"), "--certificate", files.path("client"), "--key", files.path("client-key")]
    good = generate("--server", url, *certificates, FOLEY_TOKEN_FILE=str(tmp_path / "token"))
    assert good.returncode == 0, good.stderr
    assert (tmp_path / "out.wav").is_file()
    (tmp_path / "out.wav").unlink()
    for options, environment, word in (
        (["--server", url, *certificates], {}, "token"),
        (["--server", url, *certificates], {"FOLEY_TOKEN": "wrong"}, "token"),
        (["--server", url, *certificates], {"FOLEY_TOKEN_FILE": "/nowhere"}, "FOLEY_TOKEN_FILE"),
        (["--server", url, "--ca", "/nowhere"], {}, "/nowhere"),
        (["--server", "localhost:1", "--ca", files.path("ca")], {}, "grpcs://"),
        (["--server", url], {}, "server"),
    ):
        bad = generate(*options, **environment)
        assert bad.returncode == 2, bad.stderr
        assert word in bad.stderr.strip().splitlines()[-1]
        assert "Traceback" not in bad.stderr
    assert not (tmp_path / "out.wav").exists()
