"""The checklist B4 of the research notes, where it applies to this API: each test is named after a promise.

Row 12 asks for a setting that Triton 24.10 does not have; here no more than `CHUNKS_ON_SERVER` chunks of a video are on
their way (test_lifecycle.py).

Crashes and drains (B4: 2 to 6) are in test_api_lifecycle.py, TLS (24) in test_api_tls.py, damaged media and requests
(16) in test_api_fuzz.py, the sandbox (18, 19) in unit/test_api_sandbox.py, the soak (25) in test_api_soak.py,
checkpoints (21) in unit/test_checkpoint.py.
"""

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import grpc
import numpy as np
import psutil
import pytest
import tritonclient.grpc as grpcclient
from google.longrunning import operations_pb2, operations_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from prometheus_client.parser import text_string_to_metric_families
from tritonclient.utils import InferenceServerException

from foley.errors import (
    Cancelled,
    FoleyError,
    Forbidden,
    MediaError,
    MediaTooLarge,
    NotFound,
    Overloaded,
    RateLimited,
    ServerUnavailable,
    SettingError,
    TimedOut,
    Unauthenticated,
)
from foley.options import GenerateOptions
from foley_client import AsyncFoleyClient, CancelToken, FoleyClient, GenerationJob, Progress
from foley_pipeline.api import foley_pb2 as pb
from foley_pipeline.api import foley_pb2_grpc
from foley_pipeline.api.messages import request_to_proto
from foley_pipeline.api.status import from_call
from foley_pipeline.request import EnvelopeInput, GenerationRequest
from foley_pipeline.triton import TritonClient
from foley_server.api.tokens import entry, new_token
from harness.api_server import ApiServer, api_server

ENVELOPE = np.abs(np.sin(np.arange(100) / 20)).astype(np.float32)
QUICK: dict[str, Any] = {"envelope": ENVELOPE, "text": "glass", "steps": 1}
ENDLESS = QUICK | {"steps": 1000}
RUNNING, WAITING = 2, 2
KEYS = {"alice": ("generate", "read"), "bob": ("generate", "read"), "reader": ("read",)}


@pytest.fixture(scope="module")
def tokens() -> dict[str, str]:
    return {name: new_token() for name in (*KEYS, "slow")}


@pytest.fixture(scope="module")
def server(
    triton: TritonClient, tokens: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ApiServer]:
    folder = tmp_path_factory.mktemp("api")
    entries = [entry(name, tokens[name], scopes, 1e6, 100) for name, scopes in KEYS.items()]
    entries.append(entry("slow", tokens["slow"], ["generate"], 6, 1))
    (folder / "tokens.toml").write_text("".join(entries))
    with api_server(
        folder,
        triton=triton.url,
        tokens=folder / "tokens.toml",
        running=RUNNING,
        waiting=WAITING,
        duration=30,
        sound=60,
        upload_mib=1,
        upload_timeout=5,
    ) as server:
        yield server


@pytest.fixture
def alice(server: ApiServer, tokens: dict[str, str]) -> Iterator[FoleyClient]:
    with server.client(tokens["alice"]) as client:
        yield client


@pytest.fixture
def channel(server: ApiServer) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.grpc) as channel:
        yield channel


def until(what: Callable[[], bool], timeout_s: float = 20) -> None:
    end = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < end
        time.sleep(0.01)


def request_folders(server: ApiServer) -> list[Path]:
    """The folders of the uploads that the server holds now."""
    return [path for path in server.log.parent.glob("data/uploads-*/*") if path.is_dir()]


def message(wanted: dict[str, Any]) -> pb.GenerateRequest:
    """The first message of `Generate`, for arguments of `FoleyClient.generate`."""
    options = {name: value for name, value in wanted.items() if name != "envelope"}
    envelope = EnvelopeInput(wanted["envelope"], 160 * len(wanted["envelope"]))
    request = GenerationRequest(envelope=envelope, options=GenerateOptions(**options))
    return pb.GenerateRequest(options=request_to_proto(request))


def denoised(job: GenerationJob) -> int:
    """The number of its denoising steps so far."""
    progress = job.status.progress
    return progress.done if progress and progress.stage == "denoise" else 0


def bearer(token: str) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {token}")]


def steps(triton: TritonClient) -> int:
    return int(triton.statistics("denoiser").get("inference_count", 0))


def metric(server: ApiServer, name: str, **labels: str) -> float:
    """The sum of a metric's samples with these labels."""
    with urlopen(f"http://{server.metrics}/metrics", timeout=10) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    return sum(
        sample.value
        for family in families
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


def settled_steps(triton: TritonClient) -> int:
    """The count once two looks, a step apart and more, agree."""
    while (before := steps(triton)) != (time.sleep(0.3), steps(triton))[1]:
        pass
    return before


def generate_and_cancel(client: FoleyClient, after: int) -> None:
    """Generate for ever, and cancel after so many steps."""
    cancel = CancelToken()

    def on_progress(progress: Progress) -> None:
        if progress.stage == "denoise" and progress.done >= after:
            cancel.cancel()

    client.generate(**ENDLESS, on_progress=on_progress, cancel=cancel)


def test_1_health_means_health(channel: grpc.Channel) -> None:
    health = health_pb2_grpc.HealthStub(channel)
    serving = health_pb2.HealthCheckResponse.SERVING
    for service in ("", "foley.v1.FoleyService", "google.longrunning.Operations"):
        assert health.Check(health_pb2.HealthCheckRequest(service=service)).status == serving
    with pytest.raises(grpc.RpcError) as refused:
        health.Check(health_pb2.HealthCheckRequest(service="nobody"))
    assert refused.value.code() == grpc.StatusCode.NOT_FOUND
    watch = health.Watch(health_pb2.HealthCheckRequest(service="nobody"))
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    watch.cancel()


def test_7_no_wait_is_endless(server: ApiServer, tokens: dict[str, str], triton: TritonClient) -> None:
    """A deadline of the caller's ends the work on the server too, for both clients."""
    options = iter([message(ENDLESS)])
    with grpc.insecure_channel(server.grpc) as channel:
        call = foley_pb2_grpc.FoleyServiceStub(channel).Generate(options, timeout=0.7, metadata=bearer(tokens["alice"]))
        with pytest.raises(grpc.RpcError) as late:
            list(call)
    assert isinstance(from_call(late.value), TimedOut)
    assert settled_steps(triton) == steps(triton)

    async def in_asyncio() -> None:
        async with grpc.aio.insecure_channel(server.grpc) as channel:
            request = message(ENDLESS)
            metadata = bearer(tokens["alice"])
            call = foley_pb2_grpc.FoleyServiceStub(channel).Generate(iter([request]), timeout=0.7, metadata=metadata)
            with pytest.raises(grpc.aio.AioRpcError) as late:
                async for _ in call:
                    pass
            assert isinstance(from_call(late.value), TimedOut)

    asyncio.run(in_asyncio())
    assert settled_steps(triton) == steps(triton)


def test_7_the_clients_set_a_deadline_on_every_call(video: Path) -> None:
    """Asked of a server that notes what time each call brings."""
    left: dict[str, float | None] = {}

    class Noting(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
            def answer(requests: object, context: grpc.ServicerContext) -> Iterator[bytes]:
                left[details.method.rsplit("/", 1)[1]] = context.time_remaining()
                context.abort(grpc.StatusCode.INTERNAL, "noted")
                yield b""

            return grpc.stream_stream_rpc_method_handler(answer)

    noting = grpc.server(ThreadPoolExecutor(2))
    noting.add_generic_rpc_handlers((Noting(),))
    url = f"grpc://127.0.0.1:{noting.add_insecure_port('127.0.0.1:0')}"
    noting.start()

    def calls(client: Any) -> Iterator[Callable[[], Any]]:
        yield client.serving
        yield lambda: client.generate(**QUICK)
        yield lambda: client.predict_envelope(video)
        yield lambda: client.embed_prompt("a")
        yield lambda: client.create(**QUICK)
        job = client.job("operations/x")
        yield lambda: job.status
        yield from (job.wait, job.cancel, job.delete)

    async def ask_all() -> None:
        async with AsyncFoleyClient(url) as client:
            for call in calls(client):
                with pytest.raises(FoleyError):
                    await call()
            with pytest.raises(FoleyError):
                _ = [one async for one in client.jobs()]

    asyncio.run(ask_all())
    from_asyncio = dict(left)
    left.clear()
    with FoleyClient(url) as client:
        for call in calls(client):
            with pytest.raises(FoleyError):
                call()
        with pytest.raises(FoleyError):
            list(client.jobs())
    noting.stop(None)
    assert len(left) == len(from_asyncio) == 10
    assert all(seconds is not None and seconds < 4000 for seconds in (*left.values(), *from_asyncio.values()))


def test_8_cancelled_work_stops_within_a_step(alice: FoleyClient, triton: TritonClient) -> None:
    before = settled_steps(triton)
    with pytest.raises(Cancelled):
        generate_and_cancel(alice, after=5)
    after = steps(triton)  # the client does not wait for the server, which learns of the cancellation a moment later
    assert settled_steps(triton) - after < 50
    assert 5 <= after - before < 500


def test_8_a_cancelled_operation_stops_too(alice: FoleyClient, triton: TritonClient) -> None:
    job = alice.create(**ENDLESS)
    until(lambda: denoised(job) > 3)
    job.cancel()
    after = steps(triton)
    assert settled_steps(triton) - after <= 1


def test_9_a_request_leaves_nothing_behind_however_it_ends(
    server: ApiServer, alice: FoleyClient, video: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"\0" * 5000)
    process = psutil.Process(server.process.pid)

    def round_of_requests() -> None:
        alice.generate(**QUICK)
        alice.generate(video, text="glass", steps=1)
        alice.embed_prompt("x")
        for raising in (
            lambda: alice.generate(tmp_path / "bad.mp4", text="glass", steps=1),
            lambda: alice.predict_envelope(tmp_path / "bad.mp4"),
            lambda: generate_and_cancel(alice, after=1),
            lambda: alice.job("operations/none").status,
        ):
            with pytest.raises(FoleyError):
                raising()

    def state() -> tuple[int, int, int, int]:
        uploads = len(request_folders(server))
        return process.num_fds(), process.num_threads(), len(process.children()), uploads

    for _ in range(2):
        round_of_requests()
    until(lambda: state()[2:] == (0, 0))
    before = state()
    for _ in range(2):
        round_of_requests()
    until(lambda: all(now <= then for now, then in zip(state(), before, strict=True)))


CRASHING = """
import sys, time
import grpc
from foley_pipeline.api import foley_pb2 as pb, foley_pb2_grpc
url, token, upload = sys.argv[1:]
def parts():
    options = pb.GenerateOptions.FromString(sys.stdin.buffer.read())
    if upload == "True":
        options.video.SetInParent()
    yield pb.GenerateRequest(options=options)
    if upload == "True":
        yield pb.GenerateRequest(chunk=pb.FileChunk(kind=pb.FILE_KIND_VIDEO, data=b"x" * 1000))
        time.sleep(60)
stub = foley_pb2_grpc.FoleyServiceStub(grpc.insecure_channel(url))
list(stub.Generate(parts(), metadata=[("authorization", "Bearer " + token)]))
"""


@pytest.mark.parametrize("upload", [True, False], ids=["in the middle of an upload", "in the middle of the stream"])
def test_10_clients_may_crash(server: ApiServer, tokens: dict[str, str], triton: TritonClient, upload: bool) -> None:
    """kill -9 of as many as there are places: each place is free again, and the work has stopped."""
    crashing = []
    for _ in range(RUNNING + WAITING):
        command = [sys.executable, "-c", CRASHING, server.grpc, tokens["bob"], str(upload)]
        one = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert one.stdin
        one.stdin.write(message(ENDLESS).options.SerializeToString())
        one.stdin.close()
        crashing.append(one)
    until(lambda: metric(server, "foley_api_admitted") == RUNNING + WAITING)
    for one in crashing:
        one.kill()
        one.wait()
    until(lambda: metric(server, "foley_api_admitted") == 0)
    assert settled_steps(triton) == steps(triton)


def test_11_the_queue_is_bounded_and_refuses_at_once(
    server: ApiServer, tokens: dict[str, str], triton: TritonClient
) -> None:
    """Exactly the excess fails, with RetryInfo; the rest succeed."""
    count = RUNNING + WAITING + 3

    def ask(_: int) -> tuple[object, float]:
        with server.client(tokens["bob"]) as client:
            began = time.monotonic()
            try:
                return client.generate(**QUICK | {"steps": 60}), time.monotonic() - began
            except FoleyError as error:
                return error, time.monotonic() - began

    with ThreadPoolExecutor(count) as pool:
        ended = list(pool.map(ask, range(count)))
    refused = [(error, seconds) for error, seconds in ended if isinstance(error, FoleyError)]
    assert len(refused) == 3
    for error, seconds in refused:
        assert isinstance(error, Overloaded)
        assert error.retry_after_s
        assert seconds < 1
    ask(0)  # and there is a place again


def test_11_what_waits_is_told_how_many_are_in_front(server: ApiServer, tokens: dict[str, str]) -> None:
    with grpc.insecure_channel(server.grpc) as channel:
        stub = foley_pb2_grpc.FoleyServiceStub(channel)

        def begin(wanted: dict[str, Any]) -> grpc.Call:
            return stub.Generate(iter([message(wanted)]), metadata=bearer(tokens["alice"]), timeout=60)

        running = [begin(ENDLESS) for _ in range(RUNNING)]
        for call in running:
            assert next(call).accepted.queue_position == 0
        waiting = [begin(QUICK) for _ in range(WAITING)]
        assert sorted(next(call).accepted.queue_position for call in waiting) == [1, 2]
        running[0].cancel()
        rest = [[event.WhichOneof("event") for event in call] for call in waiting]
        running[1].cancel()
    assert all(kinds[-1] == "finished" for kinds in rest)


def test_13_a_slow_reader_hurts_itself_only(server: ApiServer, tokens: dict[str, str], alice: FoleyClient) -> None:
    """It holds a place, but no turn and no memory that grows; others go on."""
    long = {"envelope": np.full(3000, 0.1, np.float32), "steps": 1, "variations": 2}
    process = psutil.Process(server.process.pid)
    alice.generate(**long)
    before = process.memory_info().rss
    with grpc.insecure_channel(server.grpc) as channel:
        stub = foley_pb2_grpc.FoleyServiceStub(channel)
        request = message(long)
        slow = [stub.Generate(iter([request]), metadata=bearer(tokens["bob"]), timeout=60) for _ in range(RUNNING)]
        for call in slow:
            next(call)
        for _ in range(3):
            alice.generate(**QUICK)
        assert process.memory_info().rss - before < 100 * 2**20
        for call in slow:
            assert list(call)[-1].WhichOneof("event") == "finished"


def test_14_shares_are_fair_and_nobody_storms(server: ApiServer, tokens: dict[str, str]) -> None:
    with server.client(tokens["slow"]) as client:
        refusals = []
        for _ in range(8):
            try:
                client.embed_prompt("a")
            except RateLimited as error:
                refusals.append(error.retry_after_s)
        assert len(refusals) == 2
        assert all(seconds and 0 < seconds <= 10 for seconds in refusals)


@pytest.mark.parametrize(
    ("error", "calls"),
    [
        (ServerUnavailable("gone"), 1),
        (ServerUnavailable("gone"), 3),
        (Overloaded("full"), 3),
        (MediaError("bad"), 1),
        (Unauthenticated("who"), 1),
    ],
)
def test_14_only_what_says_so_is_tried_again(error: FoleyError, calls: int) -> None:
    """A real server that fails each call in the same way, and counts."""
    from foley_pipeline.api.status import to_status

    error.retry_after_s = 0.01 if calls > 1 else None
    status = to_status(error)
    asked = []

    class Failing(operations_pb2_grpc.OperationsServicer):
        def DeleteOperation(self, request: object, context: grpc.ServicerContext) -> None:
            asked.append(request)
            context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
            context.abort(getattr(grpc.StatusCode, error.grpc_status), status.message)

    failing = grpc.server(ThreadPoolExecutor(1))
    operations_pb2_grpc.add_OperationsServicer_to_server(Failing(), failing)
    url = f"grpc://127.0.0.1:{failing.add_insecure_port('127.0.0.1:0')}"
    failing.start()
    with FoleyClient(url, max_retries=2) as client, pytest.raises(type(error)):
        client.job("operations/x").delete()
    failing.stop(None)
    assert len(asked) == calls


def test_15_size_limits_hold(server: ApiServer, tokens: dict[str, str], alice: FoleyClient, tmp_path: Path) -> None:
    limit = 2**20
    for size, expected in ((limit, MediaError), (limit + 1, MediaTooLarge)):
        (tmp_path / "clip").write_bytes(b"\1" * size)
        with pytest.raises(MediaError) as refused:
            alice.predict_envelope(tmp_path / "clip")
        assert type(refused.value) is expected
    with grpc.insecure_channel(server.grpc) as channel:
        stub = foley_pb2_grpc.FoleyServiceStub(channel)
        too_large = pb.GenerateRequest(chunk=pb.FileChunk(kind=pb.FILE_KIND_VIDEO, data=b"\0" * (5 * 2**20)))
        for compression in (grpc.Compression.NoCompression, grpc.Compression.Gzip):  # 5 KB on the wire, then 5 MB
            with pytest.raises(grpc.RpcError) as refused_call:
                list(
                    stub.Generate(
                        iter([too_large]), metadata=bearer(tokens["alice"]), compression=compression, timeout=10
                    )
                )
            assert refused_call.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert alice.embed_prompt("small")[0].shape == (512,)


def test_15_an_upload_that_never_ends_does(server: ApiServer, tokens: dict[str, str]) -> None:
    stop = threading.Event()

    def drip() -> Iterator[pb.PredictEnvelopeRequest]:
        yield pb.PredictEnvelopeRequest(video=pb.VideoSource())
        while not stop.wait(0.2):
            yield pb.PredictEnvelopeRequest(chunk=pb.FileChunk(kind=pb.FILE_KIND_VIDEO, data=b"x"))

    with grpc.insecure_channel(server.grpc) as channel:
        stub = foley_pb2_grpc.FoleyServiceStub(channel)
        with pytest.raises(grpc.RpcError) as late:
            stub.PredictEnvelope(drip(), metadata=bearer(tokens["alice"]), timeout=30)
    stop.set()
    assert "upload" in from_call(late.value).args[0]


def test_17_too_much_is_refused_before_the_work(alice: FoleyClient, triton: TritonClient) -> None:
    before = settled_steps(triton)
    too_long = EnvelopeInput(np.zeros(3001, np.float32), 480_001)
    with pytest.raises(MediaTooLarge, match="30 s"):
        alice.generate(envelope=too_long)
    with pytest.raises(SettingError, match="60 s"):
        alice.generate(envelope=np.zeros(3000, np.float32), variations=3)
    assert steps(triton) == before


def test_18_a_bomb_costs_little_and_is_named(alice: FoleyClient, server: ApiServer, media: Path) -> None:
    process = psutil.Process(server.process.pid)
    before = process.memory_info().rss
    for name in ("decode_bomb_4096x4096.mp4", "ffconcat_reads_a_local_file.mp4", "hls_reads_a_local_file.mp4"):
        began = time.monotonic()
        with pytest.raises(MediaError) as refused:
            alice.predict_envelope(media / name)
        assert time.monotonic() - began < 10
        assert refused.value.field == "video"
    assert process.memory_info().rss - before < 50 * 2**20


def assert_missing(client: FoleyClient, name: str) -> None:
    """No method finds the generation `name`."""
    job = client.job(name)
    for method in (lambda: job.status, job.wait, job.cancel, job.delete):
        with pytest.raises(NotFound):
            method()


def test_20_names_are_names(alice: FoleyClient) -> None:
    for name in (
        "operations/../generations.sqlite",
        "operations/%2e%2e",
        "/etc/passwd",
        "operations/",
        "a/../b",
        " ..",
    ):
        assert_missing(alice, name)


def test_20_another_tokens_generation_does_not_exist(
    server: ApiServer, tokens: dict[str, str], alice: FoleyClient
) -> None:
    job = alice.create(**QUICK)
    with server.client(tokens["bob"]) as bob:
        assert_missing(bob, job.name)
        assert job.name not in [one.name for one in bob.jobs()]
    job.wait()


def test_22_what_is_not_open_is_closed(
    server: ApiServer, tokens: dict[str, str], channel: grpc.Channel, triton: TritonClient
) -> None:
    """Every method that reflection finds, and some that it does not: no token, a wrong one, a wrong scheme."""
    with grpc.insecure_channel(server.grpc) as authorized:
        intercepted = grpc.intercept_channel(authorized, _Sending(bearer(tokens["reader"])))
        database = ProtoReflectionDescriptorDatabase(intercepted)
        methods = [
            f"/{service}/{method.name}"
            for service in database.get_services()
            for one in database.FindFileContainingSymbol(service).service
            for method in one.method
            if service.endswith(f".{one.name}")
        ]
    assert len(methods) == 5 + 5 + 2 + 1
    before = settled_steps(triton)
    for method in {*methods, "/foley.v1.FoleyService/Unknown", "/inference.GRPCInferenceService/ModelInfer"} - {
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/Watch",
    }:
        for metadata in (
            [],
            bearer("foley_wrong"),
            [("authorization", f"Basic {tokens['alice']}")],
            [("authorization", tokens["alice"])],
            bearer(""),
        ):
            with pytest.raises(grpc.RpcError) as refused:
                list(channel.stream_stream(method)(iter([b""]), metadata=metadata, timeout=10))
            assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED, method
    assert steps(triton) == before
    log = server.log.read_text()
    command = " ".join(psutil.Process(server.process.pid).cmdline())
    for token in tokens.values():
        assert token not in log
        assert token not in command
        assert token not in (server.log.parent / "tokens.toml").read_text()


class _Sending(grpc.StreamStreamClientInterceptor):
    """Sends metadata along with the calls of a library that cannot."""

    def __init__(self, metadata: list[tuple[str, str]]) -> None:
        self._metadata = metadata

    def intercept_stream_stream(self, continuation, details, requests):  # type: ignore[no-untyped-def]
        return continuation(details._replace(metadata=self._metadata), requests)


def test_22_a_token_without_the_scope_may_look_and_not_touch(
    server: ApiServer, tokens: dict[str, str], triton: TritonClient, video: Path
) -> None:
    before = settled_steps(triton)
    with server.client(tokens["reader"]) as reader:
        for call in (
            lambda: reader.generate(**QUICK),
            lambda: reader.create(**QUICK),
            lambda: reader.embed_prompt("a"),
            lambda: reader.predict_envelope(video),
            reader.job("operations/x").cancel,
            reader.job("operations/x").delete,
        ):
            with pytest.raises(Forbidden, match="scope"):
                call()
        assert list(reader.jobs()) == []
    assert steps(triton) == before
    assert not request_folders(server)


def test_23_tritons_own_doors_are_closed(triton: TritonClient) -> None:
    """Loopback only; nothing loads a model, registers memory, or changes what is traced and logged."""
    (process,) = [
        one
        for one in psutil.process_iter(["name", "cmdline"])
        if one.info["name"] == "tritonserver" and f"--grpc-port={triton.url.split(':')[1]}" in one.info["cmdline"]
    ]
    command = process.info["cmdline"]
    assert {"--grpc-address=127.0.0.1", "--metrics-address=127.0.0.1", "--model-control-mode=none"} <= set(command)
    assert "--allow-http=false" in command
    listening = {c.laddr.ip.removeprefix("::ffff:") for c in process.net_connections("tcp") if c.status == "LISTEN"}
    assert listening == {"127.0.0.1"}
    with grpcclient.InferenceServerClient(triton.url) as client:
        for call in (
            lambda: client.load_model("denoiser"),
            lambda: client.unload_model("denoiser"),
            lambda: client.register_system_shared_memory("x", "/x", 1),
            lambda: client.get_system_shared_memory_status(),
            lambda: client.update_log_settings({"log_info": False}),
            lambda: client.update_trace_settings(settings={"trace_rate": "1"}),
        ):
            with pytest.raises(InferenceServerException):
                call()
        assert client.is_server_ready()


def test_the_metrics_count_what_happened_and_tritons_stand_beside(server: ApiServer, alice: FoleyClient) -> None:
    method = "/foley.v1.FoleyService/Generate"
    before = metric(server, "foley_api_requests_total", method=method, code="OK")
    alice.generate(**QUICK)
    assert metric(server, "foley_api_requests_total", method=method, code="OK") == before + 1
    assert metric(server, "foley_api_stage_seconds_count", stage="denoise") > 0
    assert metric(server, "foley_api_triton_ready") == 1
    assert metric(server, "foley_api_admitted") == 0


def test_watching_an_operation_costs_no_place(server: ApiServer, alice: FoleyClient) -> None:
    """More may watch than may work."""
    job = alice.create(**QUICK | {"steps": 100})
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: job.wait(), range(8)))
    assert all(np.array_equal(one.waveform, results[0].waveform) for one in results)


def test_a_wait_for_an_operation_ends_in_time(
    alice: FoleyClient, channel: grpc.Channel, tokens: dict[str, str]
) -> None:
    job = alice.create(**ENDLESS)
    request = operations_pb2.WaitOperationRequest(name=job.name)
    request.timeout.FromMilliseconds(300)
    operations = operations_pb2_grpc.OperationsStub(channel)
    answer = operations.WaitOperation(request, metadata=bearer(tokens["alice"]), timeout=10)
    assert not answer.done
    job.cancel()
