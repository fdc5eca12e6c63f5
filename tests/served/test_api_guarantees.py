"""Guarantees of the public API: deadlines, cancellation, limits, fairness, tokens and metrics.

Other files test crashes and drains (test_api_lifecycle.py), TLS (test_api_tls.py), malformed input (test_api_fuzz.py),
the sandbox (unit/test_api_sandbox.py) and leaks (test_api_soak.py).
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
from harness.settled import settled

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


def wait_until(condition: Callable[[], bool], timeout_s: float = 20) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def request_folders(server: ApiServer) -> list[Path]:
    """Return the folders of the uploads that the server holds."""
    return [path for path in server.log.parent.glob("data/uploads-*/*") if path.is_dir()]


def message(arguments: dict[str, Any]) -> pb.GenerateRequest:
    """Return the first message of `Generate` for arguments of `FoleyClient.generate`."""
    options = {name: value for name, value in arguments.items() if name != "envelope"}
    envelope = EnvelopeInput(arguments["envelope"], 160 * len(arguments["envelope"]))
    request = GenerationRequest(envelope=envelope, options=GenerateOptions(**options))
    return pb.GenerateRequest(options=request_to_proto(request))


def denoised(job: GenerationJob) -> int:
    """Return the number of completed denoising steps."""
    progress = job.status.progress
    return progress.done if progress and progress.stage == "denoise" else 0


def bearer(token: str) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {token}")]


def steps(triton: TritonClient) -> int:
    return int(triton.statistics("denoiser").get("inference_count", 0))


def metric(server: ApiServer, name: str, **labels: str) -> float:
    """Return the sum of the samples of a metric with these labels."""
    with urlopen(f"http://{server.metrics}/metrics", timeout=10) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    return sum(
        sample.value
        for family in families
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


def generate_and_cancel(client: FoleyClient, after: int) -> None:
    """Start a long generation, and cancel it after `after` steps."""
    cancel = CancelToken()

    def on_progress(progress: Progress) -> None:
        if progress.stage == "denoise" and progress.done >= after:
            cancel.cancel()

    client.generate(**ENDLESS, on_progress=on_progress, cancel=cancel)


def test_health_reports_known_services(channel: grpc.Channel) -> None:
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


def test_client_deadline_stops_work_on_server(server: ApiServer, tokens: dict[str, str], triton: TritonClient) -> None:
    """A client's deadline also ends the work on the server, with both kinds of gRPC client."""
    options = iter([message(ENDLESS)])
    with grpc.insecure_channel(server.grpc) as channel:
        call = foley_pb2_grpc.FoleyServiceStub(channel).Generate(options, timeout=0.7, metadata=bearer(tokens["alice"]))
        with pytest.raises(grpc.RpcError) as late:
            list(call)
    assert isinstance(from_call(late.value), TimedOut)
    assert settled(lambda: steps(triton)) == steps(triton)

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
    assert settled(lambda: steps(triton)) == steps(triton)


def test_clients_set_deadline_on_every_call(video: Path) -> None:
    """Tested with a server that records the remaining time of each call."""
    timeouts: dict[str, float | None] = {}

    class Recording(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
            def answer(requests: object, context: grpc.ServicerContext) -> Iterator[bytes]:
                timeouts[details.method.rsplit("/", 1)[1]] = context.time_remaining()
                context.abort(grpc.StatusCode.INTERNAL, "noted")
                yield b""

            return grpc.stream_stream_rpc_method_handler(answer)

    recording = grpc.server(ThreadPoolExecutor(2))
    recording.add_generic_rpc_handlers((Recording(),))
    url = f"grpc://127.0.0.1:{recording.add_insecure_port('127.0.0.1:0')}"
    recording.start()

    def calls(client: Any) -> Iterator[Callable[[], Any]]:
        yield client.serving
        yield lambda: client.generate(**QUICK)
        yield lambda: client.predict_envelope(video)
        yield lambda: client.embed_prompt("a")
        yield lambda: client.create(**QUICK)
        job = client.job("operations/x")
        yield lambda: job.status
        yield from (job.wait, job.cancel, job.delete)

    async def call_all() -> None:
        async with AsyncFoleyClient(url) as client:
            for call in calls(client):
                with pytest.raises(FoleyError):
                    await call()
            with pytest.raises(FoleyError):
                _ = [one async for one in client.jobs()]

    asyncio.run(call_all())
    from_asyncio = dict(timeouts)
    timeouts.clear()
    with FoleyClient(url) as client:
        for call in calls(client):
            with pytest.raises(FoleyError):
                call()
        with pytest.raises(FoleyError):
            list(client.jobs())
    recording.stop(None)
    assert len(timeouts) == len(from_asyncio) == 10
    assert all(seconds is not None and seconds < 4000 for seconds in (*timeouts.values(), *from_asyncio.values()))


def test_cancelled_generation_stops_denoising(alice: FoleyClient, triton: TritonClient) -> None:
    before = settled(lambda: steps(triton))
    with pytest.raises(Cancelled):
        generate_and_cancel(alice, after=5)
    after = steps(triton)  # the client does not wait for the server, which learns of the cancellation a moment later
    end = settled(lambda: steps(triton))
    assert end - after < 50
    assert 5 <= end - before < 500


def test_cancelled_operation_stops_within_a_step(alice: FoleyClient, triton: TritonClient) -> None:
    job = alice.create(**ENDLESS)
    wait_until(lambda: denoised(job) > 3)
    job.cancel()
    after = steps(triton)
    # the step in flight, and one that has ended and that Triton has not counted yet
    assert settled(lambda: steps(triton)) - after <= 2


def test_ended_requests_release_all_resources(
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
    wait_until(lambda: state()[2:] == (0, 0))
    before = state()
    for _ in range(2):
        round_of_requests()
    wait_until(lambda: all(now <= then for now, then in zip(state(), before, strict=True)))


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
def test_crashed_clients_release_their_slots(
    server: ApiServer, tokens: dict[str, str], triton: TritonClient, upload: bool
) -> None:
    """SIGKILL of as many clients as the server admits frees all slots and stops the work."""
    crashing = []
    for _ in range(RUNNING + WAITING):
        command = [sys.executable, "-c", CRASHING, server.grpc, tokens["bob"], str(upload)]
        one = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert one.stdin
        one.stdin.write(message(ENDLESS).options.SerializeToString())
        one.stdin.close()
        crashing.append(one)
    # an upload takes no place until it is complete
    held = (lambda: len(request_folders(server))) if upload else (lambda: metric(server, "foley_api_calls"))
    wait_until(lambda: held() == RUNNING + WAITING)
    for one in crashing:
        one.kill()
        one.wait()
    wait_until(lambda: held() == 0)
    assert settled(lambda: steps(triton)) == steps(triton)


def test_full_queue_rejects_excess_at_once(server: ApiServer, tokens: dict[str, str], triton: TritonClient) -> None:
    """Exactly the excess fails, with RetryInfo; the rest succeed."""
    count = RUNNING + WAITING + 3

    def generate(_: int) -> tuple[object, float]:
        with server.client(tokens["bob"]) as client:
            began = time.monotonic()
            try:
                return client.generate(**QUICK | {"steps": 60}), time.monotonic() - began
            except FoleyError as error:
                return error, time.monotonic() - began

    with ThreadPoolExecutor(count) as pool:
        ended = list(pool.map(generate, range(count)))
    refused = [(error, seconds) for error, seconds in ended if isinstance(error, FoleyError)]
    assert len(refused) == 3
    for error, seconds in refused:
        assert isinstance(error, Overloaded)
        assert error.retry_after_s
        assert seconds < 1
    generate(0)  # a slot is free again


def test_waiting_calls_receive_their_queue_position(server: ApiServer, tokens: dict[str, str]) -> None:
    with grpc.insecure_channel(server.grpc) as channel:
        stub = foley_pb2_grpc.FoleyServiceStub(channel)

        def start(arguments: dict[str, Any]) -> grpc.Call:
            return stub.Generate(iter([message(arguments)]), metadata=bearer(tokens["alice"]), timeout=60)

        running = [start(ENDLESS) for _ in range(RUNNING)]
        for call in running:
            assert any(event.HasField("accepted") and not event.accepted.queue_position for event in call)
        waiting = [start(QUICK) for _ in range(WAITING)]
        assert sorted(next(call).accepted.queue_position for call in waiting) == [1, 2]
        running[0].cancel()
        rest = [[event.WhichOneof("event") for event in call] for call in waiting]
        running[1].cancel()
    assert all(kinds[-1] == "finished" for kinds in rest)


def test_calls_without_a_message_take_no_place(server: ApiServer, tokens: dict[str, str], alice: FoleyClient) -> None:
    end = threading.Event()

    def nothing() -> Iterator[pb.GenerateRequest]:
        end.wait(60)
        yield from ()

    def places() -> float:
        return metric(server, "foley_api_calls")

    wait_until(lambda: places() == 0)
    with grpc.insecure_channel(server.grpc) as channel:
        stub = foley_pb2_grpc.FoleyServiceStub(channel)
        calls = [
            method(nothing(), metadata=bearer(tokens["bob"]), timeout=60)
            for method in (stub.Generate, stub.PredictEnvelope.future, stub.EmbedPrompt.future)
            for _ in range(RUNNING + WAITING)
        ]
        alice.generate(**QUICK)
        wait_until(lambda: places() == 0)
        for call in calls:
            call.cancel()
        end.set()


def test_slow_reader_does_not_block_others(server: ApiServer, tokens: dict[str, str], alice: FoleyClient) -> None:
    """It takes no place once its job has ended, and memory does not grow; other requests complete."""
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


def test_rate_limit_rejects_with_retry_delay(server: ApiServer, tokens: dict[str, str]) -> None:
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
def test_client_retries_only_retryable_errors(error: FoleyError, calls: int) -> None:
    """A real server that fails every call in the same way and counts the calls."""
    from foley_pipeline.api.status import to_status

    error.retry_after_s = 0.01 if calls > 1 else None
    status = to_status(error)
    requests = []

    class Failing(operations_pb2_grpc.OperationsServicer):
        def DeleteOperation(self, request: object, context: grpc.ServicerContext) -> None:
            requests.append(request)
            context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
            context.abort(getattr(grpc.StatusCode, error.grpc_status), status.message)

    failing = grpc.server(ThreadPoolExecutor(1))
    operations_pb2_grpc.add_OperationsServicer_to_server(Failing(), failing)
    url = f"grpc://127.0.0.1:{failing.add_insecure_port('127.0.0.1:0')}"
    failing.start()
    with FoleyClient(url, max_retries=2) as client, pytest.raises(type(error)):
        client.job("operations/x").delete()
    failing.stop(None)
    assert len(requests) == calls


def test_size_limits_are_enforced(
    server: ApiServer, tokens: dict[str, str], alice: FoleyClient, tmp_path: Path
) -> None:
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


def test_endless_upload_times_out(server: ApiServer, tokens: dict[str, str]) -> None:
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


def test_excessive_duration_is_rejected_before_inference(alice: FoleyClient, triton: TritonClient) -> None:
    before = settled(lambda: steps(triton))
    too_long = EnvelopeInput(np.zeros(3001, np.float32), 480_001)
    with pytest.raises(MediaTooLarge, match="30 s"):
        alice.generate(envelope=too_long)
    with pytest.raises(SettingError, match="60 s"):
        alice.generate(envelope=np.zeros(3000, np.float32), variations=3)
    assert steps(triton) == before


def test_decode_bomb_is_rejected_cheaply(alice: FoleyClient, server: ApiServer, media: Path) -> None:
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
    """Assert that every method raises NotFound for the operation `name`."""
    job = client.job(name)
    for method in (lambda: job.status, job.wait, job.cancel, job.delete):
        with pytest.raises(NotFound):
            method()


def test_path_like_operation_names_are_not_found(alice: FoleyClient) -> None:
    for name in (
        "operations/../generations.sqlite",
        "operations/%2e%2e",
        "/etc/passwd",
        "operations/",
        "a/../b",
        " ..",
    ):
        assert_missing(alice, name)


def test_jobs_of_other_tokens_are_not_found(server: ApiServer, tokens: dict[str, str], alice: FoleyClient) -> None:
    job = alice.create(**QUICK)
    with server.client(tokens["bob"]) as bob:
        assert_missing(bob, job.name)
        assert job.name not in [one.name for one in bob.jobs()]
    job.wait()


def test_every_method_except_health_requires_a_token(
    server: ApiServer, tokens: dict[str, str], channel: grpc.Channel, triton: TritonClient
) -> None:
    """Every method found by reflection, and unknown ones: no token, a wrong token, a wrong scheme."""
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
    before = settled(lambda: steps(triton))
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
    """Adds metadata to the calls of a library that has no parameter for it."""

    def __init__(self, metadata: list[tuple[str, str]]) -> None:
        self._metadata = metadata

    def intercept_stream_stream(self, continuation, details, requests):  # type: ignore[no-untyped-def]
        return continuation(details._replace(metadata=self._metadata), requests)


def test_read_scope_allows_only_listing(
    server: ApiServer, tokens: dict[str, str], triton: TritonClient, video: Path
) -> None:
    before = settled(lambda: steps(triton))
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


def test_triton_listens_on_loopback_and_rejects_control_calls(triton: TritonClient) -> None:
    """It listens on loopback only; loading models, registering memory and changing settings are rejected."""
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


def test_metrics_count_requests_and_stages(server: ApiServer, alice: FoleyClient) -> None:
    method = "/foley.v1.FoleyService/Generate"
    before = metric(server, "foley_api_requests_total", method=method, code="OK")
    alice.generate(**QUICK)
    assert metric(server, "foley_api_requests_total", method=method, code="OK") == before + 1
    assert metric(server, "foley_api_stage_seconds_count", stage="denoise") > 0
    assert metric(server, "foley_api_triton_available") == 1
    assert metric(server, "foley_api_calls") == 0


def test_watchers_occupy_no_admission_slot(server: ApiServer, alice: FoleyClient) -> None:
    """The number of watchers may exceed the number of calls."""
    job = alice.create(**QUICK | {"steps": 100})
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: job.wait(), range(8)))
    assert all(np.array_equal(one.waveform, results[0].waveform) for one in results)


def test_wait_operation_returns_after_its_timeout(
    alice: FoleyClient, channel: grpc.Channel, tokens: dict[str, str]
) -> None:
    job = alice.create(**ENDLESS)
    request = operations_pb2.WaitOperationRequest(name=job.name)
    request.timeout.FromMilliseconds(300)
    operations = operations_pb2_grpc.OperationsStub(channel)
    answer = operations.WaitOperation(request, metadata=bearer(tokens["alice"]), timeout=10)
    assert not answer.done
    job.cancel()
