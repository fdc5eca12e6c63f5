"""Certificates on a real gRPC server and a real studio: client certificates, replacement without a restart, faults."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from foley.errors import SettingError
from foley_server.api.certificates import Certificates
from foley_server.api.listen import listen
from foley_server.api.settings import load
from foley_server.http.serve import serve_studio

DEADLINE_S = 30


class Page:
    """An application in place of the studio."""

    def app(self, _hosts: frozenset[str]) -> Starlette:
        return Starlette(routes=[Route("/", lambda _: PlainTextResponse("page"))])


@dataclass
class Files:
    """Certificate files of a server, and clients that trust them."""

    folder: Path

    def __post_init__(self) -> None:
        self.ca, self.client_ca = trustme.CA(), trustme.CA()
        self.client_ca.cert_pem.write_to_path(self.folder / "client-ca.pem")
        self.write(self.issue())

    def issue(self) -> trustme.LeafCert:
        return self.ca.issue_cert("localhost")

    def write(self, certificate: trustme.LeafCert) -> None:
        certificate.private_key_pem.write_to_path(self.folder / "key.pem")
        certificate.cert_chain_pems[0].write_to_path(self.folder / "certificate.pem")

    def certificates(self, client_ca: bool = False) -> Certificates:
        path = self.folder / "client-ca.pem" if client_ca else None
        return Certificates(self.folder / "certificate.pem", self.folder / "key.pem", path)

    def context(self, client_ca: trustme.CA | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context(cadata=self.ca.cert_pem.bytes().decode())
        if client_ca:
            client_ca.issue_cert("client@example.org").configure_cert(context)
        return context


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


@asynccontextmanager
async def grpc_port(certificates: Certificates) -> AsyncIterator[int]:
    server, service = grpc.aio.server(), health.aio.HealthServicer()
    await service.set("", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(service, server)
    port = listen(server, "localhost", 0, certificates)
    await server.start()
    try:
        yield port
    finally:
        await server.stop(0)


@asynccontextmanager
async def studio_port(certificates: Certificates) -> AsyncIterator[int]:
    settings = load(["--studio-address=localhost", "--studio-port=0"])
    async with serve_studio(Page(), settings, certificates) as url:
        yield int(url.rstrip("/").rpartition(":")[2])


BOTH = pytest.mark.parametrize("serve", [grpc_port, studio_port], ids=["gRPC", "studio"])


async def connect(port: int, context: ssl.SSLContext) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    context.set_alpn_protocols(["h2", "http/1.1"])
    return await asyncio.wait_for(asyncio.open_connection("localhost", port, ssl=context), DEADLINE_S)


async def serial(port: int, context: ssl.SSLContext) -> str:
    """Return the serial number of the certificate that a new connection gets."""
    _, writer = await connect(port, context)
    number = str(writer.get_extra_info("peercert")["serialNumber"])
    writer.close()
    return number


def number(certificate: trustme.LeafCert) -> str:
    from cryptography.x509 import load_pem_x509_certificate

    found = load_pem_x509_certificate(certificate.cert_chain_pems[0].bytes()).serial_number
    return f"{found:X}".zfill(2 * ((found.bit_length() + 7) // 8))


@BOTH
def test_replaced_certificate_is_used_by_new_connections_only(files: Files, serve) -> None:
    async def run() -> None:
        async with serve(files.certificates()) as port:
            before = await serial(port, files.context())
            reader, writer = await connect(port, files.context())  # still works after the replacement
            files.write(new := files.issue())
            assert await serial(port, files.context()) == number(new) != before
            if serve is studio_port:
                writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert b"200 OK" in await asyncio.wait_for(reader.readline(), DEADLINE_S)
            writer.close()

    asyncio.run(run())


def test_grpc_channel_survives_a_replacement(files: Files) -> None:
    async def run() -> None:
        credentials = grpc.ssl_channel_credentials(files.ca.cert_pem.bytes())
        async with (
            grpc_port(files.certificates()) as port,
            grpc.aio.secure_channel(f"localhost:{port}", credentials) as channel,
        ):
            check = health_pb2_grpc.HealthStub(channel).Check
            for _ in range(3):
                assert (await check(health_pb2.HealthCheckRequest(), timeout=DEADLINE_S)).status == 1
                files.write(files.issue())

    asyncio.run(run())


@BOTH
def test_invalid_replacement_is_logged_once_and_the_previous_certificate_is_used(files: Files, serve, caplog) -> None:
    async def run() -> None:
        async with serve(files.certificates()) as port:
            before = await serial(port, files.context())
            other = files.issue()
            other.cert_chain_pems[0].write_to_path(files.folder / "certificate.pem")  # the key is still the old one
            for _ in range(3):
                assert await serial(port, files.context()) == before
            errors = [one for one in caplog.records if "cannot be reloaded" in one.getMessage()]
            assert len(errors) == 1
            (files.folder / "key.pem").unlink()
            assert await serial(port, files.context()) == before
            other.private_key_pem.write_to_path(files.folder / "key.pem")
            assert await serial(port, files.context()) == number(other)

    asyncio.run(run())


@BOTH
def test_only_clients_of_the_current_ca_are_accepted(files: Files, serve) -> None:
    async def accepted(port: int, client_ca: trustme.CA | None) -> bool:
        try:
            reader, writer = await connect(port, files.context(client_ca))
            if serve is studio_port:
                writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            else:
                writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5))
            answer = await asyncio.wait_for(reader.read(9), DEADLINE_S)  # with TLS 1.3, a refusal arrives here
            writer.close()
        except OSError:
            return False
        return bool(answer)

    async def run() -> None:
        async with serve(files.certificates(client_ca=True)) as port:
            stranger = trustme.CA()
            assert await accepted(port, files.client_ca)
            assert not await accepted(port, stranger)
            assert not await accepted(port, None)
            stranger.cert_pem.write_to_path(files.folder / "client-ca.pem")
            assert await accepted(port, stranger)
            assert not await accepted(port, files.client_ca)

    asyncio.run(run())


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_session_is_not_resumed_after_its_ca_was_replaced(files: Files, version: ssl.TLSVersion) -> None:
    def resumes(port: int, context: ssl.SSLContext, session: ssl.SSLSession | None) -> ssl.SSLSession | None:
        import socket

        with (
            socket.create_connection(("localhost", port), DEADLINE_S) as raw,
            context.wrap_socket(raw, server_hostname="localhost", session=session) as connection,
        ):
            connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            if not connection.recv(100):
                raise ConnectionError("refused")
            return connection.session

    async def run() -> None:
        async with studio_port(files.certificates(client_ca=True)) as port:
            context = files.context(files.client_ca)
            context.minimum_version = context.maximum_version = version
            session = await asyncio.to_thread(resumes, port, context, None)
            trustme.CA().cert_pem.write_to_path(files.folder / "client-ca.pem")
            with pytest.raises(OSError):  # noqa: PT011 - the type depends on which side closes first
                await asyncio.to_thread(resumes, port, context, session)

    asyncio.run(run())


def test_files_are_validated_at_the_start(files: Files) -> None:
    whole = files.certificates()
    assert whole
    other = files.issue()
    key = serialization.load_pem_private_key(other.private_key_pem.bytes(), None)
    encrypted = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )
    for name, content in (
        ("key.pem", other.private_key_pem.bytes()),
        ("key.pem", encrypted),
        ("key.pem", b""),
        ("certificate.pem", b"no certificate"),
        ("client-ca.pem", b"no certificate"),
    ):
        valid = (files.folder / name).read_bytes()
        (files.folder / name).write_bytes(content)
        with pytest.raises(SettingError, match=name):
            files.certificates(client_ca=True)
        (files.folder / name).write_bytes(valid)
    (files.folder / "key.pem").unlink()
    with pytest.raises(SettingError, match=r"key\.pem"):
        files.certificates()
