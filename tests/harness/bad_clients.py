"""Clients that hold connections to an API and let it wait; a process of its own: `python -m harness.bad_clients`.

Arguments: HOST:PORT, the number of connections, and the name of an operation with a large result. It prints a line
when all connections are open, opens those again that the API closes, and ends when standard input closes; then it
prints how often each kind was opened.
"""

import asyncio
import resource
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc

from foley_pipeline.api import foley_pb2 as pb
from foley_pipeline.api import foley_pb2_grpc

HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])  # and empty SETTINGS
TRICKLE_S = 3.0  # between two bytes of an upload
AGAIN_S = 0.5  # before a connection that was closed is opened again
WINDOW = [("grpc.use_local_subchannel_pool", 1), ("grpc.http2.lookahead_bytes", 65_536), ("grpc.http2.bdp_probe", 0)]

Opened = Callable[[], None]


async def silent(target: str, _: str, opened: Opened) -> None:
    """Send nothing at all."""
    await _raw(target, b"", opened)


async def idle(target: str, _: str, opened: Opened) -> None:
    """Send the start of HTTP/2, and nothing more."""
    await _raw(target, HTTP2_PREFACE, opened)


async def no_first_message(target: str, _: str, opened: Opened) -> None:
    """Call Generate, and send no message."""
    async with _stub(target, opened) as stub:
        await stub.Generate().code()


async def trickle(target: str, _: str, opened: Opened) -> None:
    """Announce a video, and upload it byte by byte."""
    async with _stub(target, opened) as stub:
        call = stub.Generate()
        options = pb.GenerateOptions(video=pb.VideoSource())
        await call.write(pb.GenerateRequest(options=options))
        while not call.done():
            await call.write(pb.GenerateRequest(chunk=pb.FileChunk(kind=pb.FILE_KIND_VIDEO, data=b"x")))
            await asyncio.sleep(TRICKLE_S)


async def not_reading(target: str, operation: str, opened: Opened) -> None:
    """Request a large result, and do not read it."""
    async with _stub(target, opened) as stub:
        await stub.WatchGeneration(pb.WatchGenerationRequest(name=operation)).code()


KINDS: tuple[Callable[[str, str, Opened], Awaitable[None]], ...] = (
    silent,
    idle,
    no_first_message,
    trickle,
    not_reading,
)


async def _raw(target: str, content: bytes, opened: Opened) -> None:
    host, port = target.rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
    writer.write(content)
    opened()
    try:
        while await reader.read(1024):
            pass
    finally:
        writer.close()


@asynccontextmanager
async def _stub(target: str, opened: Opened) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(target, WINDOW) as channel:
        await channel.channel_ready()
        opened()
        yield foley_pb2_grpc.FoleyServiceStub(channel)


async def _main(target: str, count: int, operation: str) -> None:
    opens, open_once = Counter[str](), asyncio.Semaphore(0)

    async def keep(kind: Callable[[str, str, Opened], Awaitable[None]]) -> None:
        first = True

        def opened() -> None:
            nonlocal first
            opens[kind.__name__] += 1
            if first:
                first = False
                open_once.release()

        while True:
            with suppress(OSError, grpc.aio.AioRpcError, asyncio.InvalidStateError):
                await kind(target, operation, opened)
            await asyncio.sleep(AGAIN_S)

    tasks = [asyncio.create_task(keep(KINDS[i % len(KINDS)])) for i in range(count)]
    for _ in tasks:
        await open_once.acquire()
    print("open", flush=True)  # noqa: T201
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    print(", ".join(f"{number} {name}" for name, number in opens.items()))  # noqa: T201


if __name__ == "__main__":
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(limit, 65_536), limit))
    asyncio.run(_main(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
