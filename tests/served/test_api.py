"""The public API in front of a real Triton: results equal the pipeline's, and progress is reported."""

import asyncio
import gc
import json
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from google.longrunning import operations_pb2, operations_pb2_grpc
from google.protobuf import descriptor_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from foley import clip
from foley.errors import AlreadyExists, Cancelled, InvalidInput, MediaError, NotFinished, NotFound, SettingError
from foley.media import probe
from foley.options import GenerateOptions
from foley_client import AsyncFoleyClient, AudioChunk, CancelToken, FoleyClient, GenerationResult, Progress
from foley_pipeline.api import foley_pb2 as pb
from foley_pipeline.api import foley_pb2_grpc
from foley_pipeline.api.messages import request_to_proto
from foley_pipeline.api.status import from_call
from foley_pipeline.request import EnvelopeInput, GenerationRequest
from foley_pipeline.triton import TritonClient
from foley_pipeline.triton_backend import TritonBackend
from harness.api_server import ApiServer, api_server
from harness.settled import settled

BIN = Path(__file__).resolve().parents[2] / ".venv" / "bin"
SAMPLES = 3 * 16_000 - 123
ENVELOPE = np.abs(np.sin(np.arange(300) / 20)).astype(np.float32)
OPTIONS = {"text": "glass", "steps": 3, "seed": 7, "variations": 2}
ON_ENVELOPE = {"envelope": EnvelopeInput(ENVELOPE, SAMPLES), **OPTIONS}
ONE_TAKE = ON_ENVELOPE | {"variations": 1}
REQUEST = GenerationRequest(envelope=EnvelopeInput(ENVELOPE, SAMPLES), options=GenerateOptions(**OPTIONS))


@pytest.fixture(scope="module")
def server(triton: TritonClient, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    with api_server(tmp_path_factory.mktemp("api"), triton=triton.url) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: ApiServer) -> Iterator[FoleyClient]:
    with server.client() as client:
        yield client


def same(ours: GenerationResult, theirs: GenerationResult) -> bool:
    return np.array_equal(ours.envelope, theirs.envelope) and all(
        np.allclose(a.waveform, b.waveform, atol=1e-4) for a, b in zip(ours.takes, theirs.takes, strict=True)
    )


@pytest.mark.parametrize("form", ["generate", "create"])
@pytest.mark.parametrize("source", ["video", "envelope"])
def test_generate_matches_pipeline(
    client: FoleyClient, backend: TritonBackend, video: Path, source: str, form: str
) -> None:
    request, arguments = REQUEST, ON_ENVELOPE
    if source == "video":
        request = GenerationRequest(video, options=GenerateOptions(**OPTIONS, loudness="follow"))
        arguments = {"video": video, **OPTIONS, "loudness": "follow"}
    expected = backend.generate(request)
    result = client.generate(**arguments) if form == "generate" else client.create(**arguments).wait()
    assert same(result, expected)
    for ours, theirs in zip(result.takes, expected.takes, strict=True):
        assert ours.recipe == json.loads(json.dumps(theirs.recipe))
    assert {"denoise", "decode"} <= set(result.timings_s)
    assert all(seconds > 0 for seconds in result.timings_s.values())


def test_audio_prompt_matches_pipeline(client: FoleyClient, backend: TritonBackend) -> None:
    recording = Path("docs/figures/figure12-metal.wav").resolve()
    options = {"steps": 3, "seed": 7, "negative_text": "music"}
    request = GenerationRequest(None, REQUEST.envelope, recording, GenerateOptions(**options))
    expected = backend.generate(request)
    result = client.generate(envelope=REQUEST.envelope, audio=recording, **options)
    assert same(result, expected)
    assert result.recipe == json.loads(json.dumps(expected.recipe))
    assert same(client.backend.generate(request), expected)
    embeddings = client.embed_prompt(audio=recording, negative_text="music")
    for ours, theirs in zip(embeddings, backend.embed_prompt(request.prompt), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_predict_envelope_then_generate_from_edited_envelope(
    client: FoleyClient, backend: TritonBackend, video: Path
) -> None:
    envelope = client.predict_envelope(video)
    np.testing.assert_array_equal(envelope, backend.predict_envelope(video))
    edited = np.where(np.arange(len(envelope)) < 50, 0, envelope).astype(np.float32)
    result = client.generate(envelope=edited, steps=1)
    np.testing.assert_array_equal(result.envelope, edited)
    assert len(result.waveform) == len(edited) * clip.HOP


def test_generate_events_are_ordered(server: ApiServer) -> None:
    with grpc.insecure_channel(server.grpc) as channel:
        call = foley_pb2_grpc.FoleyServiceStub(channel).Generate(
            iter([pb.GenerateRequest(options=request_to_proto(REQUEST))]), timeout=60
        )
        events = list(call)
        (request_id,) = (value for key, value in call.initial_metadata() if key == "x-request-id")
    kinds = [event.progress.stage or event.WhichOneof("event") for event in events]
    order = ["accepted", "prompt", "envelope_ready", "denoise", "decode", "audio", "finished"]
    kinds = [kind.removesuffix("_cached") for kind in kinds]
    assert sorted(set(kinds), key=order.index) == order
    assert sorted(kinds, key=order.index) == kinds
    assert events[0].accepted.id == request_id == events[-1].finished.id
    steps = [event.progress for event in events if event.progress.stage == "denoise"]
    assert [step.done_count for step in steps] == sorted({step.done_count for step in steps})
    assert (steps[-1].done_count, steps[-1].total_count) == (6, 6)
    assert [take.sample_count for take in events[-1].finished.takes] == [SAMPLES, SAMPLES]
    assert {one.stage for one in events[-1].finished.stage_times} >= {"denoise", "decode"}


def test_stream_yields_envelope_steps_audio_and_result(client: FoleyClient, video: Path) -> None:
    upload: list[Progress] = []
    events = list(client.stream(video, **OPTIONS))
    progress = [event for event in events if isinstance(event, Progress)]
    (envelope,) = [event.envelope for event in progress if event.envelope is not None]
    assert [(one.done, one.total) for one in progress if one.stage == "denoise"][-1] == (6, 6)
    result = events[-1]
    assert isinstance(result, GenerationResult)
    assert same(result, client.generate(video, **OPTIONS, on_progress=upload.append))
    np.testing.assert_array_equal(envelope, result.envelope)
    chunks = [event for event in events if isinstance(event, AudioChunk)]
    for variation, take in enumerate(result.takes):
        sound = np.concatenate([one.samples for one in chunks if one.variation == variation])
        np.testing.assert_array_equal(sound, take.waveform)
    sizes = [(one.done, one.total) for one in upload if one.stage == "upload" and one.done]
    assert sizes[-1] == (video.stat().st_size, video.stat().st_size)


@pytest.mark.parametrize("form", ["generate", "create"])
def test_video_bytes_are_accepted_and_result_is_saved(
    client: FoleyClient, video: Path, tmp_path: Path, form: str
) -> None:
    arguments = {"video": video.read_bytes(), "steps": 1}
    result = client.generate(**arguments) if form == "generate" else client.create(**arguments).wait()
    assert same(result, client.generate(video, steps=1))
    for name in ("out.mp4", "out.wav", "out.csv"):
        result.save(tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.csv", "out.mp4", "out.wav"]
    assert probe(tmp_path / "out.mp4").duration_s == pytest.approx(probe(video).duration_s, abs=0.05)


def test_create_is_idempotent_per_request_id(client: FoleyClient) -> None:
    request_id = str(uuid.uuid4())
    job = client.create(**ON_ENVELOPE, request_id=request_id)
    assert client.create(**ON_ENVELOPE, request_id=request_id).name == job.name
    job.wait()
    assert client.create(**ON_ENVELOPE, request_id=request_id).name == job.name
    with pytest.raises(AlreadyExists) as refused:
        client.create(**ONE_TAKE, request_id=request_id)
    assert refused.value.field == "options.request_id"
    with pytest.raises(InvalidInput, match="UUID"):
        client.create(**ON_ENVELOPE, request_id="not a uuid")
    status = job.status
    assert (status.state, status.ended, status.request_id) == ("succeeded", True, request_id)
    assert [one.name for one in client.jobs()].count(job.name) == 1


def test_cancelled_job_can_be_deleted(client: FoleyClient) -> None:
    job = client.create(**ON_ENVELOPE | {"steps": 1000})
    with pytest.raises(NotFinished):
        job.delete()
    job.cancel()
    assert job.status.state == "cancelled"
    job.cancel()  # no effect after the end
    with pytest.raises(Cancelled):
        job.wait()
    job.delete()
    for name in (job.name, "operations/none", "operations/../../etc/passwd", "", "x" * 10_000):
        with pytest.raises(NotFound):
            _ = client.job(name).status
        with pytest.raises(NotFound):
            client.job(name).wait()


def test_failed_job_reports_its_error(client: FoleyClient, tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"not a video" * 100)
    job = client.create(tmp_path / "clip.mp4")
    with pytest.raises(MediaError, match="not a video"):
        job.wait()
    status = job.status
    assert status.state == "failed"
    assert isinstance(status.error, MediaError)


def test_operations_support_wait_and_pagination(server: ApiServer, client: FoleyClient) -> None:
    names = [client.create(**ONE_TAKE).name for _ in range(5)]
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


def test_asyncio_client_matches_synchronous_client(server: ApiServer, client: FoleyClient, video: Path) -> None:
    async def run() -> None:
        async with AsyncFoleyClient(f"grpc://{server.grpc}") as other:
            assert await other.serving()
            ours, theirs = await asyncio.gather(other.generate(**ON_ENVELOPE), other.generate(**ON_ENVELOPE))
            assert same(ours, theirs)
            assert same(ours, client.generate(**ON_ENVELOPE))
            *_, streamed = [event async for event in other.stream(**ON_ENVELOPE)]
            assert same(streamed, ours)
            np.testing.assert_array_equal((await other.embed_prompt("a"))[0], client.embed_prompt("a")[0])
            envelope = await other.predict_envelope(video)
            np.testing.assert_array_equal(envelope, client.predict_envelope(video))
            job = await other.create(**ON_ENVELOPE)
            assert same(await job.wait(), ours)
            assert (await job.status).state == "succeeded"
            assert job.name in [one.name async for one in other.jobs()]
            await job.cancel()
            await job.delete()
            with pytest.raises(NotFound):
                await job.status

    asyncio.run(run())


def test_reflection_lists_services_and_methods(server: ApiServer) -> None:
    """The reflection service that grpcurl uses."""
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


def test_cli_output_is_identical_with_api_and_triton(
    server: ApiServer, video: Path, triton: TritonClient, tmp_path: Path
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


def test_invalid_request_names_field_and_runs_no_inference(
    server: ApiServer, client: FoleyClient, triton: TritonClient
) -> None:
    before = settled(lambda: triton.statistics("denoiser")["inference_count"])
    bad = request_to_proto(REQUEST)
    bad.sampling.steps = 0
    with grpc.insecure_channel(server.grpc) as channel:
        call = foley_pb2_grpc.FoleyServiceStub(channel).Generate(iter([pb.GenerateRequest(options=bad)]), timeout=60)
        with pytest.raises(grpc.RpcError) as refused:
            list(call)
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    error = from_call(refused.value)
    assert isinstance(error, SettingError)
    assert error.field == "options.sampling.steps"
    with pytest.raises(SettingError, match="higher guidance"):
        client.generate(envelope=ENVELOPE, text="a", negative_text="b", guidance=1.0)
    assert settled(lambda: triton.statistics("denoiser")["inference_count"]) == before


@pytest.mark.parametrize(("guidance", "error"), [(1.0, SettingError), (2.0, Cancelled)])
def test_failed_call_is_freed_without_garbage_collection(client: FoleyClient, guidance: float, error: type) -> None:
    """A gRPC call that is freed takes a lock: at interpreter exit, no other thread may be left to release it."""

    def calls() -> int:
        return sum(issubclass(type(one), grpc.Call) for one in gc.get_objects())

    cancel = CancelToken()
    options = {"text": "a", "negative_text": "b", "guidance": guidance}
    gc.collect()
    gc.disable()
    try:
        before = calls()
        with pytest.raises(error):
            client.generate(envelope=ENVELOPE, **options, on_progress=lambda _: cancel.cancel(), cancel=cancel)
        assert calls() == before
    finally:
        gc.enable()
