"""Connections that send nothing, or read nothing, do not keep other clients out: real gRPC server, real studio."""

import asyncio
import resource
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
import trustme
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route

from foley_server.api import interceptor, listen
from foley_server.api.certificates import Certificates
from foley_server.api.interceptor import CallInterceptor
from foley_server.api.settings import load
from foley_server.api.tokens import Tokens
from foley_server.http import connection, serve
from foley_server.telemetry.metrics import Metrics

DEADLINE_S = 60
Streams = list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    leaf = trustme.CA().issue_cert("localhost")
    leaf.private_key_pem.write_to_path(tmp_path / "key.pem")
    leaf.cert_chain_pems[0].write_to_path(tmp_path / "certificate.pem")
    return Certificates(tmp_path / "certificate.pem", tmp_path / "key.pem", None)


@asynccontextmanager
async def grpc_port(certificates: Certificates | None = None) -> AsyncIterator[int]:
    settings = load([])
    interceptor = CallInterceptor(Tokens(None), Metrics())
    server = grpc.aio.server(interceptors=[interceptor], options=listen.options(settings))
    service = health.aio.HealthServicer()
    await service.set("", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(service, server)
    port = listen.listen(server, "127.0.0.1", 0, certificates)
    await server.start()
    try:
        yield port
    finally:
        await server.stop(0)


class Page:
    """An application in place of the studio: a page, an upload, endless content, and work without output."""

    def __init__(self) -> None:
        self.works = asyncio.Event()
        self.ended = asyncio.Event()

    def app(self, _hosts: frozenset[str]) -> Starlette:
        async def upload(request: Request) -> PlainTextResponse:
            return PlainTextResponse(str(len(await request.body())))

        async def endless(_: Request) -> StreamingResponse:
            async def content() -> AsyncIterator[bytes]:
                try:
                    while True:
                        yield bytes(2**16)
                        await asyncio.sleep(0)
                finally:
                    self.ended.set()

            return StreamingResponse(content())

        async def work(_: Request) -> PlainTextResponse:
            await self.works.wait()
            return PlainTextResponse("done")

        routes = [Route("/", lambda _: PlainTextResponse("page")), Route("/upload", upload, methods=["POST"])]
        return Starlette(routes=[*routes, Route("/endless", endless), Route("/work", work)])


@asynccontextmanager
async def studio_port(page: Page, certificates: Certificates | None = None) -> AsyncIterator[int]:
    async with serve.serve_studio(page, load(["--studio-port=0"]), certificates) as url:
        yield int(url.rstrip("/").rpartition(":")[2])


async def open_connections(port: int, count: int, first_bytes: bytes = b"") -> Streams:
    opened = []
    for _ in range(count):
        reader, writer = await asyncio.wait_for(asyncio.open_connection("127.0.0.1", port, limit=1024), DEADLINE_S)
        writer.write(first_bytes)
        opened.append((reader, writer))
    return opened


async def is_closed(reader: asyncio.StreamReader) -> bool:
    """Return whether the server has closed a connection; waits for it up to the deadline."""
    try:
        while await asyncio.wait_for(reader.read(2**16), DEADLINE_S):
            pass
    except ConnectionError:
        return True
    except asyncio.TimeoutError:
        return False
    return True


def close(streams: Streams) -> None:
    for _, writer in streams:
        writer.transport.abort()


async def healthy(port: int) -> bool:
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options) as channel:
        request = health_pb2.HealthCheckRequest()
        response = await health_pb2_grpc.HealthStub(channel).Check(request, timeout=DEADLINE_S, wait_for_ready=True)
        return response.status == health_pb2.HealthCheckResponse.SERVING


async def page_status(port: int) -> bytes:
    ((reader, writer),) = await open_connections(port, 1, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    try:
        return (await asyncio.wait_for(reader.readline(), DEADLINE_S)).split()[1]
    finally:
        writer.close()


def test_silent_connections_to_the_api_do_not_disturb_a_good_client() -> None:
    async def run() -> None:
        async with grpc_port() as port:
            silent = await open_connections(port, 100)
            assert await healthy(port)
            close(silent)

    asyncio.run(run())


def test_api_closes_connections_beyond_the_limit(monkeypatch) -> None:
    monkeypatch.setattr(listen, "MAX_CONNECTIONS", 50)

    async def run() -> None:
        async with grpc_port() as port:
            opened = await open_connections(port, 100)
            ended = [asyncio.ensure_future(is_closed(reader)) for reader, _ in opened]
            closed = 0
            for one in asyncio.as_completed(ended, timeout=DEADLINE_S):
                closed += await one
                if closed == 50:
                    break
            for one in ended:
                one.cancel()
            close(opened)
            assert await healthy(port)  # the places of closed connections are free again

    asyncio.run(run())


@pytest.mark.parametrize("limit", ["HANDSHAKE_TIMEOUT_MS", "TLS", "IDLE_TIMEOUT_MS"])
def test_api_closes_silent_connections(monkeypatch, certificates: Certificates, limit: str) -> None:
    monkeypatch.setattr(listen, "HANDSHAKE_TIMEOUT_MS" if limit == "TLS" else limit, 1_000)
    hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5)  # preface, and empty settings

    async def run() -> None:
        async with grpc_port(certificates if limit == "TLS" else None) as port:
            ((reader, _),) = await open_connections(port, 1, hello if limit == "IDLE_TIMEOUT_MS" else b"")
            assert await is_closed(reader)

    asyncio.run(run())


def test_client_continues_after_its_idle_connection_was_closed(monkeypatch) -> None:
    monkeypatch.setattr(listen, "IDLE_TIMEOUT_MS", 500)

    async def run() -> None:
        async with grpc_port() as port, grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            check = health_pb2_grpc.HealthStub(channel).Check
            for _ in range(2):
                assert (await check(health_pb2.HealthCheckRequest(), timeout=DEADLINE_S)).status == 1
                ready = grpc.ChannelConnectivity.READY
                while channel.get_state() is not ready:
                    await asyncio.sleep(0)
                await asyncio.wait_for(channel.wait_for_state_change(ready), DEADLINE_S)

    asyncio.run(run())


def test_api_lets_calls_finish_before_it_closes_an_old_connection(monkeypatch) -> None:
    monkeypatch.setattr(listen, "MAX_AGE_MS", 500)

    async def run() -> None:
        server = grpc.aio.server(options=listen.options(load([])))
        released, started = asyncio.Event(), asyncio.Event()

        async def work(_request: bytes, _context: object) -> bytes:
            started.set()
            await released.wait()
            return b"done"

        handler = grpc.unary_unary_rpc_method_handler(work)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test", {"work": handler}),))
        port = listen.listen(server, "127.0.0.1", 0, None)
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = channel.unary_unary("/test/work")(b"", timeout=DEADLINE_S)
            await started.wait()
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", [("grpc.use_local_subchannel_pool", 1)]) as late:
                state = late.get_state(try_to_connect=True)
                while state is not grpc.ChannelConnectivity.READY:
                    await late.wait_for_state_change(state)
                    state = late.get_state()
                await asyncio.wait_for(
                    late.wait_for_state_change(state), DEADLINE_S
                )  # closed: it is old and has no calls
            released.set()
            assert await call == b"done"
        await server.stop(0)

    asyncio.run(run())


def test_grace_of_old_connections_covers_the_longest_call() -> None:
    options = dict(listen.options(load(["--request-timeout=100", "--upload-timeout=50"])))
    assert options["grpc.max_connection_age_grace_ms"] == 150_000


@pytest.mark.parametrize(
    ("count", "first_bytes"),
    [
        (1_100, b""),
        (1_100, b"GET / HT"),
        (1_100, b"POST /upload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n"),
        (30, b"GET /endless HTTP/1.1\r\nHost: localhost\r\n\r\n"),  # each fills megabytes of socket buffers
    ],
    ids=["nothing", "half a request", "no body", "no reading"],
)
def test_idle_connections_do_not_shut_a_good_client_out_of_the_studio(
    monkeypatch, count: int, first_bytes: bytes
) -> None:
    for module in (connection, serve):
        monkeypatch.setattr(module, "MAX_CONNECTIONS", min(module.MAX_CONNECTIONS, count * 10 // 11))
    listen.connection_limit()  # as the server does: raises the limit of open files, for both ends

    async def run() -> None:
        page = Page()
        async with studio_port(page) as port:
            ((reader, writer),) = await open_connections(port, 1, b"GET /work HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await asyncio.sleep(0.1)
            idle = await open_connections(port, count, first_bytes)
            for _ in range(20):
                assert await page_status(port) == b"200"
            page.works.set()
            assert b"200 OK" in await asyncio.wait_for(reader.readline(), DEADLINE_S)  # work in progress was not ended
            close([*idle, (reader, writer)])

    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 4_000:
        pytest.skip("this machine allows too few open files")
    asyncio.run(run())


def test_connections_without_a_handshake_do_not_shut_a_good_client_out_of_the_studio(
    certificates: Certificates,
) -> None:
    listen.connection_limit()

    async def run() -> None:
        async with studio_port(Page(), certificates) as port:
            idle = await open_connections(port, 1_100)
            context = ssl._create_unverified_context()
            reader, writer = await asyncio.wait_for(asyncio.open_connection("127.0.0.1", port, ssl=context), DEADLINE_S)
            writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b"200 OK" in await asyncio.wait_for(reader.readline(), DEADLINE_S)
            close([*idle, (reader, writer)])

    asyncio.run(run())


@pytest.mark.parametrize("first_bytes", [b"", b"GET / HT"], ids=["nothing", "half a request"])
def test_studio_closes_silent_connections(monkeypatch, first_bytes: bytes) -> None:
    monkeypatch.setattr(connection, "SILENCE_S", 1.0)

    async def run() -> None:
        async with studio_port(Page()) as port:
            ((reader, _),) = await open_connections(port, 1, first_bytes)
            assert await is_closed(reader)

    asyncio.run(run())


def test_studio_ends_a_response_that_is_not_read(monkeypatch) -> None:
    monkeypatch.setattr(connection, "SILENCE_S", 1.0)

    async def run() -> None:
        page = Page()
        async with studio_port(page) as port:
            opened = await open_connections(port, 1, b"GET /endless HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await asyncio.wait_for(page.ended.wait(), DEADLINE_S)
            close(opened)

    asyncio.run(run())


def test_studio_waits_for_its_own_work(monkeypatch) -> None:
    monkeypatch.setattr(connection, "SILENCE_S", 0.2)

    async def run() -> None:
        page = Page()
        async with studio_port(page) as port:
            ((reader, writer),) = await open_connections(port, 1, b"GET /work HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await asyncio.sleep(1)
            page.works.set()
            assert b"200 OK" in await asyncio.wait_for(reader.readline(), DEADLINE_S)
            writer.close()

    asyncio.run(run())


def test_health_watches_are_bounded(monkeypatch):
    """They need no token and last; Check goes on, and a watch that ends makes room."""
    monkeypatch.setattr(interceptor, "MAX_HEALTH_WATCHES", 3)

    async def scenario() -> None:
        async with grpc_port() as port, grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub, request = health_pb2_grpc.HealthStub(channel), health_pb2.HealthCheckRequest()
            watches = [stub.Watch(request) for _ in range(3)]
            for watch in watches:
                assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.Watch(request).read()
            assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert (await stub.Check(request)).status == health_pb2.HealthCheckResponse.SERVING
            watches[0].cancel()
            while True:
                try:
                    await stub.Watch(request).read()
                    return
                except grpc.aio.AioRpcError:
                    await asyncio.sleep(0.05)

    asyncio.run(asyncio.wait_for(scenario(), DEADLINE_S))
