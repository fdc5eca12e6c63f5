"""`CancelToken.cancel` from another thread, and `timeout`, end every call of the SDK to an unresponsive server."""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from foley.errors import Cancelled, TimedOut
from foley_client import AsyncFoleyClient, CancelToken, FoleyClient, Progress
from foley_pipeline.progress import StageTimer

ENVELOPE = np.full(100, 0.1, np.float32)
END_S = 20.0  # shorter than every deadline of the clients
Call = Callable[..., Any]


def read_all(events: Any) -> Any:
    """Read a stream of either client to its end."""

    async def read() -> list[object]:
        return [event async for event in events]

    return read() if hasattr(events, "__aiter__") else list(events)


CALLS: dict[str, Call] = {
    "generate": lambda client, video, **limits: client.generate(envelope=ENVELOPE, **limits),
    "generate a video": lambda client, video, **limits: client.generate(video, **limits),
    "stream": lambda client, video, **limits: read_all(client.stream(envelope=ENVELOPE, **limits)),
    "predict_envelope": lambda client, video, **limits: client.predict_envelope(video, **limits),
    "embed_prompt": lambda client, video, **limits: client.embed_prompt("glass", **limits),
    "create": lambda client, video, **limits: client.create(envelope=ENVELOPE, **limits),
    "wait": lambda client, video, **limits: client.job("operations/x").wait(**limits),
}


@pytest.fixture
def unresponsive() -> Iterator[tuple[str, threading.Event]]:
    """The address of a server that accepts connections but never responds, and an event set by the first connection."""
    connected = threading.Event()
    open_connections = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            try:
                while True:
                    open_connections.append(listener.accept()[0])
                    connected.set()
            except OSError:  # the listener is closed
                pass

        thread = threading.Thread(target=accept)
        thread.start()
        yield f"grpc://127.0.0.1:{listener.getsockname()[1]}", connected
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
    for connection in open_connections:
        connection.close()


@pytest.fixture
def video(tmp_path: Path) -> Path:
    path = tmp_path / "video.mp4"
    path.write_bytes(bytes(1_000_000))
    return path


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_call_to_unresponsive_server_is_cancelled(
    unresponsive: tuple[str, threading.Event], video: Path, call: Call
) -> None:
    url, connected = unresponsive
    cancel = CancelToken()
    with FoleyClient(url) as client, ThreadPoolExecutor(1) as pool:
        running = pool.submit(call, client, video, cancel=cancel)
        assert connected.wait(END_S)
        assert not running.done()
        cancel.cancel()
        assert isinstance(running.exception(END_S), Cancelled)
        with pytest.raises(Cancelled):  # no new call starts
            call(client, video, cancel=cancel)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_call_to_unresponsive_server_times_out(
    unresponsive: tuple[str, threading.Event], video: Path, call: Call
) -> None:
    with FoleyClient(unresponsive[0]) as client, pytest.raises(TimedOut, match=r"timeout of 0\.2 s"):
        call(client, video, timeout=0.2)

    async def main() -> None:
        async with AsyncFoleyClient(unresponsive[0]) as client:
            with pytest.raises(TimedOut, match=r"timeout of 0\.2 s"):
                await asyncio.wait_for(call(client, video, timeout=0.2), END_S)

    asyncio.run(main())


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_cancelling_asyncio_call_does_not_cancel_its_task(
    unresponsive: tuple[str, threading.Event], video: Path, call: Call
) -> None:
    url, connected = unresponsive
    cancel = CancelToken()

    async def main() -> str:
        async with AsyncFoleyClient(url) as client:
            canceller = threading.Thread(target=lambda: connected.wait(END_S) and cancel.cancel())
            canceller.start()
            with pytest.raises(Cancelled):
                await asyncio.wait_for(call(client, video, cancel=cancel), END_S)
            canceller.join()
            with pytest.raises(Cancelled):
                await call(client, video, cancel=cancel)
            await asyncio.sleep(0)
        return "went on"

    assert asyncio.run(main()) == "went on"


@pytest.mark.parametrize("call", [CALLS["generate a video"], CALLS["predict_envelope"]])
def test_cancelled_asyncio_upload_raises_cancelled(video: Path, call: Call) -> None:
    """gRPC ends such a call with asyncio.CancelledError, although no task was cancelled."""

    class Consuming(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
            def answer(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
                yield from (request for request in requests if not request)

            return grpc.stream_stream_rpc_method_handler(answer)

    server = grpc.server(ThreadPoolExecutor(1), handlers=(Consuming(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    cancel = CancelToken()

    def cancel_at_first_chunk(progress: Progress) -> None:
        if progress.stage == "upload" and progress.done:
            cancel.cancel()

    async def main() -> None:
        async with AsyncFoleyClient(f"grpc://127.0.0.1:{port}") as client:
            uploading = call(client, video, cancel=cancel, on_progress=cancel_at_first_chunk)
            with pytest.raises(Cancelled):
                await asyncio.wait_for(uploading, END_S)

    asyncio.run(main())
    server.stop(None).wait()


def test_cancelled_asyncio_task_raises_cancelled_error(unresponsive: tuple[str, threading.Event]) -> None:
    async def main() -> None:
        async with AsyncFoleyClient(unresponsive[0]) as client:
            task = asyncio.create_task(client.generate(envelope=ENVELOPE))
            await asyncio.to_thread(unresponsive[1].wait, END_S)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(main())


def test_retry_delay_is_cancelled() -> None:
    cancel = CancelToken()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(cancel.sleep, 10 * END_S)
        cancel.cancel()
        assert isinstance(waiting.exception(END_S), Cancelled)


def test_parent_cancels_child_but_not_vice_versa() -> None:
    parent, timer = CancelToken(), StageTimer()
    with pytest.raises(ZeroDivisionError), parent.child() as child, timer.stage("dividing"):
        raise ZeroDivisionError
    with pytest.raises(Cancelled):
        child.check()
    parent.check()
    assert timer.timings_s.keys() == {"dividing"}
    with parent.child() as other, other.child() as inner:
        parent.cancel()
        for token in (other, inner):
            with pytest.raises(Cancelled):
                token.check()
    with pytest.raises(Cancelled), parent.child():
        pass


def test_first_error_is_raised_by_token_and_children() -> None:
    parent = CancelToken()
    with parent.child() as child:
        parent.cancel(TimedOut("too late"))
        parent.cancel()
        for token in (parent, child):
            with pytest.raises(TimedOut, match="too late"):
                token.check()


def test_timeout_timer_ends_with_its_block() -> None:
    def running() -> list[threading.Thread]:
        return [one for one in threading.enumerate() if isinstance(one, threading.Timer) and not one.finished.is_set()]

    with CancelToken().child(timeout_s=END_S) as child:
        assert len(running()) == 1
    assert running() == []
    child.check()


def test_callbacks_run_once_within_their_block() -> None:
    calls: list[str] = []
    cancel = CancelToken()
    with cancel.on_cancel(lambda: calls.append("ended")):
        pass
    with cancel.on_cancel(lambda: calls.append("running")):
        cancel.cancel()
    assert calls == ["running"]
    with pytest.raises(Cancelled), cancel.on_cancel(lambda: calls.append("late")):
        pass
    assert calls == ["running"]


@pytest.mark.parametrize("is_async", [False, True])
def test_progress_callback_error_is_raised_to_caller(video: Path, is_async: bool) -> None:
    """It is raised in gRPC's thread, which would report a failed call."""

    def fail(progress: Progress) -> None:
        if progress.done:
            raise ZeroDivisionError

    class Consuming(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
            def answer(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
                yield from (request for request in requests if not request)

            return grpc.stream_stream_rpc_method_handler(answer)

    server = grpc.server(ThreadPoolExecutor(1), handlers=(Consuming(),))
    url = f"grpc://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()

    def generate() -> None:
        with FoleyClient(url) as client:
            client.generate(video, on_progress=fail)

    async def generate_async() -> None:
        async with AsyncFoleyClient(url) as client:
            await client.generate(video, on_progress=fail)

    try:
        with pytest.raises(ZeroDivisionError):
            asyncio.run(generate_async()) if is_async else generate()
    finally:
        server.stop(None).wait()
