"""The SDK with the public API and with Triton directly."""

import asyncio
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from foley.errors import Cancelled, InvalidInput, NotFinished, NotFound, SettingError, TimedOut
from foley_client import (
    AsyncFoleyClient,
    AudioChunk,
    CancelToken,
    Foley,
    FoleyClient,
    GenerateOptions,
    GenerationResult,
    Progress,
)
from foley_pipeline.triton import TritonClient
from harness.api_server import ApiServer, api_server

OPTIONS = {"text": "a stick hits metal", "steps": 2, "seed": 3}


@pytest.fixture(scope="module")
def server(triton: TritonClient, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    with api_server(tmp_path_factory.mktemp("api"), triton=triton.url) as running:
        yield running


@pytest.fixture(scope="module", params=["api", "triton"])
def client(request: pytest.FixtureRequest, triton: TritonClient) -> Iterator[FoleyClient | Foley]:
    if request.param == "api":
        with FoleyClient(f"grpc://{request.getfixturevalue('server').grpc}") as client:
            yield client
    else:
        with Foley(triton.url) as foley:
            yield foley


@pytest.fixture(scope="module")
def expected(triton: TritonClient, video: Path) -> GenerationResult:
    with Foley(triton.url) as foley:
        return foley.generate(video, **OPTIONS)


def assert_same(result: GenerationResult, expected: GenerationResult) -> None:
    np.testing.assert_allclose(result.waveform, expected.waveform, atol=1e-4)
    np.testing.assert_array_equal(result.envelope, expected.envelope)
    names = expected.recipe.keys() - {"video", "audio"}
    assert {name: result.recipe[name] for name in names} == {
        name: list(value) if isinstance(value, tuple) and isinstance(result.recipe[name], list) else value
        for name, value in expected.recipe.items()
        if name in names
    }


def test_generate_reports_progress_and_recipe(client: FoleyClient, video: Path, expected: GenerationResult) -> None:
    events: list[Progress] = []
    result = client.generate(str(video), on_progress=events.append, timeout=120, **OPTIONS)
    assert_same(result, expected)
    assert result.recipe["video"] == video.name
    stages = [event.stage for event in events]
    assert stages.index("features") < stages.index("denoise")
    (known,) = (i for i, event in enumerate(events) if event.envelope is not None)
    assert known < stages.index("denoise"), "the envelope is known before the sound is made"
    assert all(event.done <= (event.total or event.done) for event in events if event.stage != "queue")
    assert result.timings_s.keys() >= {"features", "video2rms", "denoise", "decode"}


def test_results_are_saved_as_video_and_wav(client: FoleyClient, video: Path, tmp_path: Path) -> None:
    result = client.generate(video.read_bytes(), options=GenerateOptions(steps=1), variations=2)
    result.save(tmp_path / "out.mp4")
    result.save(tmp_path / "second.wav", variation=1)
    sound, rate = soundfile.read(tmp_path / "second.wav", dtype="float32")
    assert rate == 16_000
    np.testing.assert_allclose(sound, result.takes[1].waveform, atol=2 / 32768)
    assert (tmp_path / "out.mp4").stat().st_size > video.stat().st_size


def test_stream_yields_envelope_and_audio_chunks(client: FoleyClient, video: Path, expected: GenerationResult) -> None:
    events = list(client.stream(video, **OPTIONS))
    *_, result = events
    assert isinstance(result, GenerationResult)
    assert_same(result, expected)
    chunks = [event for event in events if isinstance(event, AudioChunk)]
    np.testing.assert_array_equal(np.concatenate([chunk.samples for chunk in chunks]), result.waveform)
    assert any(isinstance(event, Progress) and event.envelope is not None for event in events)


def test_leaving_stream_stops_work(client: FoleyClient, video: Path) -> None:
    for event in client.stream(video, steps=1000):
        if isinstance(event, Progress) and event.stage == "denoise" and event.done:
            break
    began = time.monotonic()
    client.generate(video, steps=1)
    assert time.monotonic() - began < 60


def test_generate_from_edited_envelope(client: FoleyClient, video: Path) -> None:
    envelope = client.predict_envelope(video)
    louder = np.minimum(envelope * 2 + 0.05, 1)
    result = client.generate(video, envelope=louder, steps=1)
    np.testing.assert_allclose(result.envelope, louder, rtol=1e-6)
    assert (result.recipe["envelope"], result.recipe["video"]) == ("given", video.name)


def test_embeddings_have_unit_length(client: FoleyClient) -> None:
    for embedding in client.embed_prompt("glass", negative_text="music"):
        np.testing.assert_allclose(np.linalg.norm(embedding), 1, rtol=1e-5)


def test_timeout_and_cancel_token_end_call(client: FoleyClient, video: Path) -> None:
    with pytest.raises(TimedOut, match=r"timeout of 1\.5 s"):
        client.generate(video, steps=1000, timeout=1.5)
    cancel = CancelToken()

    def stop(progress: Progress) -> None:
        if progress.stage == "denoise" and progress.done:
            cancel.cancel()

    with pytest.raises(Cancelled):
        client.generate(video, steps=1000, on_progress=stop, cancel=cancel)


def test_rejects_unknown_option(client: FoleyClient, video: Path) -> None:
    with pytest.raises(SettingError, match="no option 'stepz'"):
        client.generate(video, stepz=3)


def test_job_lifecycle(client: FoleyClient, video: Path, expected: GenerationResult) -> None:
    job = client.create(video.read_bytes(), **OPTIONS)
    result = job.wait(timeout=120)
    assert_same(result, expected)
    assert (job.status.state, job.status.error) == ("succeeded", None)
    assert_same(client.job(job.name).wait(), expected)
    assert job.name in [status.name for status in client.jobs()]
    job.delete()
    with pytest.raises(NotFound):
        _ = job.status

    long = client.create(video, steps=1000)
    with pytest.raises(TimedOut):
        long.wait(timeout=1.0)
    with pytest.raises(NotFinished):
        long.delete()
    long.cancel()
    with pytest.raises(Cancelled):
        long.wait(timeout=60)
    assert long.status.state == "cancelled"


def test_repeated_create_returns_same_job(client: FoleyClient, video: Path) -> None:
    id = str(uuid.uuid4())
    assert len({client.create(video, request_id=id, steps=1).name for _ in range(3)}) == 1
    with pytest.raises(InvalidInput, match="UUID"):
        client.create(video, request_id="no uuid", steps=1)


def test_error_of_progress_callback_ends_wait_but_not_job(client: FoleyClient, video: Path) -> None:
    job = client.create(video, steps=20)

    def fail(progress: Progress) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        job.wait(on_progress=fail, timeout=120)
    job.wait(timeout=120)
    assert job.status.state == "succeeded"


def test_asyncio_client_matches_synchronous_client(server: ApiServer, video: Path, expected: GenerationResult) -> None:
    async def main() -> None:
        async with AsyncFoleyClient(f"grpc://{server.grpc}") as client:
            results = await asyncio.gather(*(client.generate(video, **OPTIONS) for _ in range(2)))
            for result in results:
                assert_same(result, expected)
            events = [event async for event in client.stream(video, **OPTIONS)]
            assert isinstance(events[-1], GenerationResult)
            job = await client.create(video, **OPTIONS)
            assert_same(await job.wait(timeout=120), expected)
            assert (await job.status).state == "succeeded"
            assert job.name in [status.name async for status in client.jobs()]
            with pytest.raises(TimedOut):
                await client.generate(video, steps=1000, timeout=1.5)

    asyncio.run(main())
