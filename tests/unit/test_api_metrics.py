"""The endpoint for monitoring: it responds whatever is slow, broken, or not there yet."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from foley_server.telemetry import metrics_server, samples
from foley_server.telemetry.metrics import Metrics
from foley_server.telemetry.metrics_server import MetricsServer
from foley_server.telemetry.samples import FreeSpace, LoopLag, Snapshot, sampling

DEADLINE_S = 30


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop that runs in a thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture
def server(loop) -> Iterator[MetricsServer]:
    server = MetricsServer(Metrics(), "127.0.0.1", 0, loop)
    yield server
    server.close()


def get(server: MetricsServer, path: str) -> tuple[int, str]:
    try:
        with urlopen(f"http://127.0.0.1:{server.port}{path}", timeout=DEADLINE_S) as response:
            return response.status, response.read().decode()
    except HTTPError as error:
        return error.code, error.read().decode()


@contextmanager
def http(respond) -> Iterator[str]:
    """Serve `respond(handler)` over HTTP; yield the URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            respond(self)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/metrics"
    server.shutdown()
    server.server_close()


def test_blocked_event_loop_is_not_live(server, loop, monkeypatch):
    monkeypatch.setattr(metrics_server, "LIVE_TIMEOUT_S", DEADLINE_S)
    assert get(server, "/live") == (200, "live\n")
    monkeypatch.setattr(metrics_server, "LIVE_TIMEOUT_S", 0.3)
    release = threading.Event()
    loop.call_soon_threadsafe(release.wait)
    assert get(server, "/live")[0] == 503
    assert get(server, "/metrics")[0] == 200
    assert get(server, "/ready")[0] == 503
    release.set()
    monkeypatch.setattr(metrics_server, "LIVE_TIMEOUT_S", DEADLINE_S)
    assert get(server, "/live")[0] == 200


def test_ready_says_whether_work_is_taken(server):
    assert get(server, "/ready")[0] == 503  # until it is known
    server.ready = lambda: True
    assert get(server, "/ready") == (200, "ready\n")
    server.ready = lambda: False
    assert get(server, "/ready") == (503, "not ready\n")
    assert get(server, "/live")[0] == 200


def test_unknown_path_is_not_found(server):
    assert get(server, "/")[0] == 404


def test_idle_connections_do_not_disturb_probes(server):
    idle = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(200)]
    assert get(server, "/live")[0] == 200
    for one in idle:
        one.close()


def test_metrics_of_triton_are_appended(server):
    def respond(handler):
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(b"nv_inference_count 3\n")

    with http(respond) as url:
        server.triton = lambda: url
        until = time.monotonic() + DEADLINE_S
        while "nv_inference_count 3" not in (page := get(server, "/metrics"))[1]:
            assert time.monotonic() < until
        assert "process_open_fds" in page[1]


@pytest.mark.parametrize("kind", ["hangs", "drips", "breaks off", "refuses", "fails"])
def test_metrics_do_not_wait_for_triton(server, monkeypatch, kind):
    monkeypatch.setattr(metrics_server, "TRITON_TIMEOUT_S", 0.2)
    released = threading.Event()
    fetches = []

    def respond(handler):
        fetches.append(kind)
        if kind == "hangs":
            released.wait()
            return
        handler.send_response(500 if kind == "fails" else 200)
        handler.send_header("Content-Length", "100000")
        handler.end_headers()
        while kind == "drips" and not released.wait(0.05):
            handler.wfile.write(b"#")
            handler.wfile.flush()

    with http(respond) as url:
        server.triton = lambda: url if kind != "refuses" else "http://127.0.0.1:1/metrics"
        for _ in range(5):
            status, page = get(server, "/metrics")
            assert status == 200
            assert "foley_api_build_info" in page
            assert "#" * 10 not in page
        if kind == "drips":
            assert len(fetches) == 1  # not one more hanging fetch for each scrape
        released.set()


def test_snapshot_keeps_values_and_reports_none_when_they_are_old(monkeypatch, caplog):
    monkeypatch.setattr(samples, "INTERVAL_S", 0.05)
    results = iter([{"queued": 3.0}, OSError("disk"), OSError("disk"), None])
    stuck = threading.Event()

    async def read():
        result = next(results)
        if isinstance(result, Exception):
            raise result
        if result is None:  # a query without a deadline of its own
            stuck.set()
            await asyncio.Event().wait()
        return result

    async def run():
        snapshot = Snapshot("the store", read)
        assert snapshot.values() == {}
        async with sampling(snapshot):
            while not stuck.is_set():
                await asyncio.sleep(0.01)
            assert snapshot.values() == {"queued": 3.0}
            monkeypatch.setattr(samples, "MAX_AGE_S", 0.0)
            assert snapshot.values() == {}

    asyncio.run(asyncio.wait_for(run(), DEADLINE_S))
    assert [record.getMessage() for record in caplog.records] == ["metrics of the store cannot be read: disk"]


def test_lag_of_a_blocked_loop_is_visible_while_it_is_blocked():
    async def run():
        lag = LoopLag()
        assert lag.worst_s() == 0
        async with sampling(lag):
            await asyncio.sleep(0)
            seen = []
            watcher = threading.Timer(1.5, lambda: seen.append(lag.worst_s()))
            watcher.start()
            time.sleep(2)  # blocks the loop on purpose
            watcher.join()
            assert seen[0] > 0.5
            await asyncio.sleep(0.6)
            assert lag.worst_s() > 1  # afterwards, for a minute

    asyncio.run(run())


def test_free_space_is_absent_if_it_cannot_be_read(tmp_path):
    space, missing = FreeSpace(tmp_path), FreeSpace(tmp_path / "none")
    until = time.monotonic() + DEADLINE_S
    while space.bytes() is None and time.monotonic() < until:
        time.sleep(0.01)
    assert space.bytes() > 0
    assert missing.bytes() is None
    space.close()
    missing.close()


def test_gauges_are_evaluated_at_each_scrape(server, loop):
    metrics = Metrics()
    values, queued = {"a:8001": 1.0}, [None]
    metrics.gauges("triton_available", "Help.", "triton", lambda: values)
    metrics.gauge("oldest_queued_seconds", "Help.", lambda: queued[0])
    metrics.decoder("crashed")
    metrics.build("demo", "0123")
    monitored = MetricsServer(metrics, "127.0.0.1", 0, loop)
    try:
        page = get(monitored, "/metrics")[1]
        assert 'foley_api_triton_available{triton="a:8001"} 1.0\n' in page
        assert "\nfoley_api_oldest_queued_seconds" not in page
        assert 'foley_api_decoders_total{outcome="crashed"} 1.0\n' in page
        assert 'bundle="demo",digest="0123"' in page
        values |= {"a:8001": 0.0, 'b"\n': 1.0}
        queued[0] = 2.5
        page = get(monitored, "/metrics")[1]
        assert 'foley_api_triton_available{triton="a:8001"} 0.0\n' in page
        assert r'foley_api_triton_available{triton="b\"\n"} 1.0' in page
        assert "\nfoley_api_oldest_queued_seconds 2.5\n" in page
    finally:
        monitored.close()
