"""`Watch.cancel` from another thread ends every call of the API's clients, also while the server is silent."""

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

from foley.errors import Cancelled
from foley_client import AsyncFoleyClient, Curve, FoleyClient, Job, Prompt, Watch

QUICK = Job(Curve(np.full(100, 0.1, np.float32), 16_000))
END_S = 20.0  # every deadline of the clients is later
CALLS: dict[str, Callable[[Any, Path, Watch], Any]] = {
    "generate": lambda client, video, watch: client.generate(QUICK, watch),
    "generate a video": lambda client, video, watch: client.generate(Job(video), watch),
    "predict_envelope": lambda client, video, watch: client.predict_envelope(video, watch=watch),
    "embed": lambda client, video, watch: client.embed(Prompt("glass"), watch),
    "create": lambda client, video, watch: client.create(QUICK, watch=watch),
    "result": lambda client, video, watch: client.result("operations/x", watch),
}


@pytest.fixture
def silent() -> Iterator[tuple[str, threading.Event]]:
    """The address of a server that accepts connections and says nothing, and an event that is set by the first one."""
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
def test_a_call_to_a_silent_server_is_cancelled(
    silent: tuple[str, threading.Event], video: Path, call: Callable[[Any, Path, Watch], Any]
) -> None:
    url, connected = silent
    watch = Watch()
    with FoleyClient(url) as client, ThreadPoolExecutor(1) as pool:
        running = pool.submit(call, client, video, watch)
        assert connected.wait(END_S)
        assert not running.done()
        watch.cancel()
        assert isinstance(running.exception(END_S), Cancelled)
        with pytest.raises(Cancelled):  # and nothing begins after that
            call(client, video, watch)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_call_of_the_asyncio_client_is_cancelled_and_its_task_is_not(
    silent: tuple[str, threading.Event], video: Path, call: Callable[[Any, Path, Watch], Any]
) -> None:
    url, connected = silent
    watch = Watch()

    async def main() -> str:
        async with AsyncFoleyClient(url) as client:
            canceller = threading.Thread(target=lambda: connected.wait(END_S) and watch.cancel())
            canceller.start()
            with pytest.raises(Cancelled):
                await asyncio.wait_for(call(client, video, watch), END_S)
            canceller.join()
            with pytest.raises(Cancelled):
                await call(client, video, watch)
            await asyncio.sleep(0)
        return "went on"

    assert asyncio.run(main()) == "went on"


class CancelsAtTheFirstChunk(Watch):
    def on_progress(self, name: str, done: int, total: int | None) -> None:
        if name == "uploading" and done:
            self.cancel()


@pytest.mark.parametrize("call", [CALLS["generate a video"], CALLS["predict_envelope"]])
def test_an_upload_of_the_asyncio_client_that_is_cancelled_raises_cancelled(
    video: Path, call: Callable[[Any, Path, Watch], Any]
) -> None:
    """gRPC ends such a call with asyncio.CancelledError, in a task that nobody has cancelled."""

    class Reading(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
            def answer(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
                yield from (request for request in requests if not request)

            return grpc.stream_stream_rpc_method_handler(answer)

    server = grpc.server(ThreadPoolExecutor(1), handlers=(Reading(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()

    async def main() -> None:
        async with AsyncFoleyClient(f"grpc://127.0.0.1:{port}") as client:
            with pytest.raises(Cancelled):
                await asyncio.wait_for(call(client, video, CancelsAtTheFirstChunk()), END_S)

    asyncio.run(main())
    server.stop(None).wait()


def test_a_cancelled_task_of_the_asyncio_client_is_cancelled(silent: tuple[str, threading.Event]) -> None:
    async def main() -> None:
        async with AsyncFoleyClient(silent[0]) as client:
            task = asyncio.create_task(client.generate(QUICK))
            await asyncio.to_thread(silent[1].wait, END_S)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(main())


def test_waiting_for_the_next_attempt_is_cancelled() -> None:
    watch = Watch()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(watch.sleep, 10 * END_S)
        watch.cancel()
        assert isinstance(waiting.exception(END_S), Cancelled)


def test_a_part_ends_with_the_whole_and_leaves_it_as_it_is() -> None:
    whole = Watch()
    with pytest.raises(ZeroDivisionError), whole.part() as part, part.stage("dividing"):
        raise ZeroDivisionError
    with pytest.raises(Cancelled):
        part.check()
    whole.check()
    assert whole.timings_s.keys() == {"dividing"}
    with whole.part() as other, other.part() as inner:
        whole.cancel()
        for watch in (other, inner):
            with pytest.raises(Cancelled):
                watch.check()
    with pytest.raises(Cancelled), whole.part():
        pass


def test_callbacks_are_called_once_and_only_while_their_block_runs() -> None:
    calls: list[str] = []
    watch = Watch()
    with watch.cancelling(lambda: calls.append("ended")):
        pass
    with watch.cancelling(lambda: calls.append("running")):
        watch.cancel()
    assert calls == ["running"]
    with pytest.raises(Cancelled), watch.cancelling(lambda: calls.append("late")):
        pass
    assert calls == ["running"]
