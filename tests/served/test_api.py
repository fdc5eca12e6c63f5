"""The public API in front of a real Triton: what it makes is what the pipeline makes, and it says how far it is."""

import asyncio
import gc
import json
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest
from google.longrunning import operations_pb2, operations_pb2_grpc
from google.protobuf import descriptor_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from foley import clip
from foley.errors import AlreadyExists, Cancelled, MediaError, NotFinished, NotFound, SettingError
from foley.options import GenerateOptions
from foley_client import Foley, Prompt, Triton, Watch
from foley_client.api import FoleyClient
from foley_client.api_async import AsyncFoleyClient
from foley_pipeline.api import foley_pb2 as pb
from foley_pipeline.api import foley_pb2_grpc
from foley_pipeline.api.messages import options_of
from foley_pipeline.api.status import from_call
from foley_pipeline.job import Curve, Job, Sound, run
from harness.api_server import ApiServer, api_server

BIN = Path(__file__).resolve().parents[2] / ".venv" / "bin"
SAMPLES = 3 * 16_000 - 123
ENVELOPE = np.abs(np.sin(np.arange(300) / 20)).astype(np.float32)
OPTIONS = {"text": "glass", "steps": 3, "seed": 7, "variations": 2}
ON_CURVE = Job(Curve(ENVELOPE, SAMPLES), GenerateOptions(**OPTIONS))
ONE_TAKE = replace(ON_CURVE, options=GenerateOptions(**OPTIONS | {"variations": 1}))


@pytest.fixture(scope="module")
def server(triton: Triton, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    with api_server(tmp_path_factory.mktemp("api"), triton=triton.url) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: ApiServer) -> Iterator[FoleyClient]:
    with server.client() as client:
        yield client


def same(ours: Sound, theirs: Sound) -> bool:
    return np.array_equal(ours.envelope, theirs.envelope) and all(
        np.allclose(a.waveform, b.waveform, atol=1e-4) for a, b in zip(ours.takes, theirs.takes, strict=True)
    )


@pytest.mark.parametrize("form", ["while one waits", "left with the server"])
@pytest.mark.parametrize("source", ["video", "envelope"])
def test_a_sound_is_the_pipelines_own(
    client: FoleyClient, foley_sdk: Foley, video: Path, source: str, form: str
) -> None:
    job = ON_CURVE if source == "envelope" else Job(video, GenerateOptions(**OPTIONS, loudness="follow"))
    expected = run(foley_sdk, job, Watch())
    sound = client.generate(job) if form == "while one waits" else client.result(client.create(job))
    assert same(sound, expected)
    for ours, theirs in zip(sound.takes, expected.takes, strict=True):
        assert ours.recipe == json.loads(json.dumps(theirs.recipe))
        assert {"denoising", "VAE and vocoder"} <= set(ours.timings_s)
        assert all(seconds > 0 for seconds in ours.timings_s.values())


def test_an_audio_prompt_goes_along(client: FoleyClient, foley_sdk: Foley, video: Path) -> None:
    recording = Path("docs/figures/figure12-metal.wav").resolve()
    job = replace(
        ON_CURVE,
        options=GenerateOptions(steps=3, seed=7, negative_text="music"),
        audio=recording,
    )
    assert same(client.generate(job), run(foley_sdk, job, Watch()))
    for ours, theirs in zip(client.embed(job.prompt), foley_sdk.embed(job.prompt), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_an_envelope_is_predicted_and_comes_back_edited(client: FoleyClient, foley_sdk: Foley, video: Path) -> None:
    envelope = client.predict_envelope(video)
    np.testing.assert_array_equal(envelope, foley_sdk.predict_envelope(video))
    edited = np.where(np.arange(len(envelope)) < 50, 0, envelope).astype(np.float32)
    sound = client.generate(Job(Curve(edited, len(edited) * clip.HOP), GenerateOptions(steps=1)))
    np.testing.assert_array_equal(sound.envelope, edited)


def test_events_come_in_their_order(server: ApiServer) -> None:
    with grpc.insecure_channel(server.grpc) as channel:
        call = foley_pb2_grpc.FoleyServiceStub(channel).Generate(
            iter([pb.GenerateRequest(options=options_of(ON_CURVE))]), timeout=60
        )
        events = list(call)
        (request_id,) = (value for key, value in call.initial_metadata() if key == "x-request-id")
    kinds = [event.WhichOneof("event") for event in events]
    assert [kind for i, kind in enumerate(kinds) if kind not in kinds[:i]] == [
        "accepted",
        "envelope_ready",
        "step_done",
        "audio",
        "finished",
    ]
    assert sorted(kinds, key=["accepted", "envelope_ready", "step_done", "audio", "finished"].index) == kinds
    assert events[0].accepted.id == request_id == events[-1].finished.id
    steps = [event.step_done for event in events if event.HasField("step_done")]
    assert [step.done_count for step in steps] == sorted({step.done_count for step in steps})
    assert (steps[-1].done_count, steps[-1].total_count) == (6, 6)
    assert [take.sample_count for take in events[-1].finished.takes] == [SAMPLES, SAMPLES]
    assert {one.stage for one in events[-1].finished.stage_times} >= {"denoising"}


def test_a_generation_is_left_once_however_often_it_is_sent(client: FoleyClient) -> None:
    request_id = str(uuid.uuid4())
    name = client.create(ON_CURVE, request_id)
    assert client.create(ON_CURVE, request_id) == name
    client.result(name)
    assert client.create(ON_CURVE, request_id) == name
    with pytest.raises(AlreadyExists) as refused:
        client.create(ONE_TAKE, request_id)
    assert refused.value.field == "options.request_id"
    with pytest.raises(Exception, match="UUID"):
        client.create(ON_CURVE, "not a uuid")
    status = client.status(name)
    assert (status.state, status.request_id) == ("succeeded", request_id)
    assert [one.name for one in client.generations()].count(name) == 1


def test_a_generation_is_watched_cancelled_listed_and_forgotten(client: FoleyClient) -> None:
    endless = replace(ON_CURVE, options=GenerateOptions(**OPTIONS | {"steps": 1000}))
    name = client.create(endless)
    with pytest.raises(NotFinished):
        client.delete(name)
    client.cancel(name)
    assert client.status(name).state == "cancelled"
    client.cancel(name)  # one that has ended stays as it is
    with pytest.raises(Cancelled):
        client.result(name)
    client.delete(name)
    for gone in (name, "operations/none", "operations/../../etc/passwd", "", "x" * 10_000):
        with pytest.raises(NotFound):
            client.status(gone)
        with pytest.raises(NotFound):
            client.result(gone)


def test_a_generation_that_fails_says_why(client: FoleyClient, tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"not a video" * 100)
    name = client.create(Job(tmp_path / "clip.mp4"))
    with pytest.raises(MediaError, match="known format"):
        client.result(name)
    status = client.status(name)
    assert status.state == "failed"
    assert isinstance(status.error, MediaError)


def test_operations_are_listed_page_by_page_and_waited_for(server: ApiServer, client: FoleyClient) -> None:
    names = [client.create(ONE_TAKE) for _ in range(5)]
    with grpc.insecure_channel(server.grpc) as channel:
        operations = operations_pb2_grpc.OperationsStub(channel)
        request = operations_pb2.WaitOperationRequest(name=names[-1])
        request.timeout.FromSeconds(60)
        done = operations.WaitOperation(request)
        assert done.done
        assert done.response.Is(pb.Generation.DESCRIPTOR)
        found, token = [], ""
        while True:
            page = operations.ListOperations(operations_pb2.ListOperationsRequest(page_size=2, page_token=token))
            assert len(page.operations) <= 2
            found += [operation.name for operation in page.operations]
            if not (token := page.next_page_token):
                break
        assert found[:5] == names[::-1]
        assert len(found) == len(set(found))
        for bad in ({"page_size": -1}, {"page_token": "x"}, {"filter": "a=b"}):
            with pytest.raises(grpc.RpcError) as refused:
                operations.ListOperations(operations_pb2.ListOperationsRequest(**bad))
            assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_the_asyncio_client_does_the_same(server: ApiServer, client: FoleyClient, video: Path) -> None:
    async def all_of_it() -> None:
        async with AsyncFoleyClient(f"grpc://{server.grpc}") as other:
            assert await other.serving()
            ours, theirs = await asyncio.gather(other.generate(ON_CURVE), other.generate(ON_CURVE))
            assert same(ours, theirs)
            assert same(ours, client.generate(ON_CURVE))
            np.testing.assert_array_equal((await other.embed(Prompt("a")))[0], client.embed(Prompt("a"))[0])
            envelope = await other.predict_envelope(video)
            np.testing.assert_array_equal(envelope, client.predict_envelope(video))
            name = await other.create(ON_CURVE)
            assert same(await other.result(name), ours)
            assert (await other.status(name)).state == "succeeded"
            assert name in [one.name async for one in other.generations()]
            await other.cancel(name)
            await other.delete(name)
            with pytest.raises(NotFound):
                await other.status(name)

    asyncio.run(all_of_it())


def test_reflection_tells_all_that_there_is(server: ApiServer) -> None:
    """As grpcurl would ask."""
    with grpc.insecure_channel(server.grpc) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        services = set(database.get_services())
        file = database.FindFileContainingSymbol("foley.v1.FoleyService")
    assert {"foley.v1.FoleyService", "google.longrunning.Operations", "grpc.health.v1.Health"} <= services
    assert isinstance(file, descriptor_pb2.FileDescriptorProto)
    assert [method.name for method in file.service[0].method] == [
        "Generate",
        "PredictEnvelope",
        "EmbedPrompt",
        "CreateGeneration",
        "WatchGeneration",
    ]


def test_the_command_line_uses_it_as_it_uses_a_triton(
    server: ApiServer, video: Path, triton: Triton, tmp_path: Path
) -> None:
    def generate(server: str, name: str) -> bytes:
        result = subprocess.run(
            [BIN / "foley", "generate", video, "--text", "a stick", "--steps", "2", "--seed", "3",
             "--server", server, "-o", f"{name}.wav", "-o", f"{name}.mp4"],
            cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        return (tmp_path / f"{name}.wav").read_bytes()

    assert generate(f"grpc://{server.grpc}", "api") == generate(triton.url, "triton")
    result = subprocess.run(
        [BIN / "foley", "envelope", video, "--server", server.grpc, "-o", "curve.csv"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr


def test_what_is_wrong_is_said_with_the_field_and_nothing_is_done(
    server: ApiServer, client: FoleyClient, triton: Triton
) -> None:
    before = triton.statistics("denoiser")["inference_count"]
    bad = options_of(ON_CURVE)
    bad.sampling.steps = 0
    with grpc.insecure_channel(server.grpc) as channel:
        call = foley_pb2_grpc.FoleyServiceStub(channel).Generate(iter([pb.GenerateRequest(options=bad)]), timeout=60)
        with pytest.raises(grpc.RpcError) as refused:
            list(call)
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    error = from_call(refused.value)
    assert isinstance(error, SettingError)
    assert error.field == "options.sampling.steps"
    with pytest.raises(SettingError, match="more guidance"):
        client.generate(replace(ON_CURVE, options=GenerateOptions(text="a", negative_text="b", guidance=1.0)))
    assert triton.statistics("denoiser")["inference_count"] == before


class StopsAtOnce(Watch):
    """Stops with the first step."""

    def on_progress(self, name: str, done: int, total: int | None) -> None:
        self.cancel()


@pytest.mark.parametrize(
    ("guidance", "watch", "error"), [(1.0, Watch(), SettingError), (2.0, StopsAtOnce(), Cancelled)]
)
def test_a_call_that_failed_is_let_go(client: FoleyClient, guidance: float, watch: Watch, error: type) -> None:
    """gRPC's call waits for a lock as it is freed: when the interpreter ends, nobody may be left to give that back."""

    def calls() -> int:
        return sum(issubclass(type(one), grpc.Call) for one in gc.get_objects())

    job = replace(ON_CURVE, options=GenerateOptions(text="a", negative_text="b", guidance=guidance))
    gc.collect()
    gc.disable()
    try:
        before = calls()
        with pytest.raises(error):
            client.generate(job, watch)
        assert calls() == before
    finally:
        gc.enable()
