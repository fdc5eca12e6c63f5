"""The interface of the SDK: generated synchronous code, equal methods of all clients, and flexible arguments."""

import gc
import inspect
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

import foley_client
from foley import envelope_file, errors
from foley.errors import EnvelopeError, MediaError, OutputError, SettingError
from foley_bench.small_video import write_small_video
from foley_client import AsyncFoleyClient, Foley, FoleyClient, GenerateOptions, GenerationResult, Take
from foley_client._async.backend import AsyncApiBackend
from foley_client._inputs import generation_request
from foley_client._sync.backend import ApiBackend
from foley_client.curves import read_envelope
from foley_client.local import LocalBackend
from foley_pipeline.backend import Backend
from foley_pipeline.prompt import Prompt, as_prompt
from foley_pipeline.request import EnvelopeInput, GenerationRequest
from foley_pipeline.triton_backend import TritonBackend


def methods(cls: type) -> dict[str, object]:
    return {name: one for name, one in inspect.getmembers(cls, inspect.isfunction) if not name.startswith("_")}


def arguments(method: object) -> list[tuple[str, object, object]]:
    found = inspect.signature(method).parameters.values()  # type: ignore[arg-type]
    return [(one.name, one.kind, one.default) for one in found]


def test_synchronous_client_is_generated_from_asyncio_client(repository: Path, tmp_path: Path) -> None:
    shipped = repository / "client" / "foley_client" / "_sync"
    generator = [sys.executable, repository / "client" / "generate_sync.py", tmp_path / "_sync"]
    subprocess.run(generator, check=True, cwd=repository, timeout=60)
    for module in ("backend.py", "client.py"):
        assert (tmp_path / "_sync" / module).read_text() == (shipped / module).read_text(), "run `make sync`"


@pytest.mark.parametrize("backend", [TritonBackend, ApiBackend, AsyncApiBackend, LocalBackend])
def test_every_backend_has_the_methods_of_the_protocol(backend: type) -> None:
    for name, method in methods(Backend).items():
        assert arguments(getattr(backend, name)) == arguments(method), name


def test_local_backend_has_the_methods_of_the_api(repository: Path) -> None:
    for name, method in methods(ApiBackend).items():
        assert arguments(getattr(LocalBackend, name)) == arguments(method), name


def test_all_clients_have_the_same_methods() -> None:
    names = methods(FoleyClient).keys()
    assert names == methods(AsyncFoleyClient).keys() == methods(Foley).keys()
    assert {"generate", "stream", "predict_envelope", "embed_prompt", "create", "job", "jobs", "close"} <= names
    for name in names:
        assert arguments(getattr(FoleyClient, name)) == arguments(getattr(AsyncFoleyClient, name)), name


def test_exports_are_complete_and_documented() -> None:
    assert set(foley_client.__all__) <= vars(foley_client).keys()
    assert foley_client.errors is errors
    for name in foley_client.__all__:
        one = getattr(foley_client, name)
        assert not callable(one) or inspect.getdoc(one) or name == "OnProgress", name


@pytest.fixture
def video(tmp_path: Path) -> Path:
    path = tmp_path / "hits.mp4"
    write_small_video(path)
    return path


def test_files_are_paths_strings_or_bytes(video: Path) -> None:
    assert generation_request(str(video), None, None, None, {}).video == video
    request = generation_request(video.read_bytes(), None, b"RIFF", None, {"steps": 3})
    assert request.video
    assert request.video.read_bytes() == video.read_bytes()
    assert request.audio
    assert request.audio.read_bytes() == b"RIFF"
    temporary = [request.video, request.audio]
    del request
    gc.collect()
    assert not any(path.exists() for path in temporary)


def test_requests_take_strings_as_paths_and_prompts(video: Path, tmp_path: Path) -> None:
    request = GenerationRequest(str(video), EnvelopeInput([0.1] * 150, 24_000), f"{tmp_path}/a.wav")
    assert (request.video, request.audio) == (video, tmp_path / "a.wav")
    assert Prompt("", f"{tmp_path}/a.wav").audio == tmp_path / "a.wav"
    assert as_prompt("glass") == Prompt("glass")
    assert request.envelope
    assert request.envelope.envelope.dtype == np.float32
    (tmp_path / "curve.json").write_text(envelope_file.dumps(request.envelope.envelope, ".json"))
    assert read_envelope(f"{tmp_path}/curve.json", 1.5).samples == 24_000
    GenerationResult(RESULT.envelope, RESULT.takes, {}, str(video)).save(f"{tmp_path}/out.mp4")
    assert (tmp_path / "out.mp4").stat().st_size > video.stat().st_size


def test_backends_take_strings_as_paths_and_prompts() -> None:
    offline = TritonBackend(None)  # type: ignore[arg-type]  # it is not called
    with FoleyClient("grpc://localhost:1") as client:
        for backend in (offline, LocalBackend(offline), client.backend):
            with pytest.raises(MediaError, match=r"missing\.mp4"):
                backend.predict_envelope("missing.mp4")
            with pytest.raises(MediaError, match=r"missing\.mp4"):
                backend.embed_prompt(Prompt(audio="missing.mp4"))  # type: ignore[arg-type]
            with pytest.raises(SettingError, match="text has 2001 characters"):
                backend.embed_prompt("x" * 2001)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [(5, "is int: give the path of a file"), ("s3://bucket/a.mp4", "is the URL s3://bucket/a.mp4: download it first")],
)
def test_what_is_no_file_is_refused_in_one_sentence(video: Path, wrong: object, words: str) -> None:
    with FoleyClient("grpc://localhost:1") as foley:  # it is not called
        for call in (
            lambda: foley.generate(wrong),
            lambda: foley.generate(video, audio=wrong),
            lambda: foley.create(wrong),
            lambda: next(foley.stream(wrong)),
            lambda: foley.predict_envelope(wrong),
            lambda: foley.embed_prompt(audio=wrong),
            lambda: foley.job("operations/1", wrong),
            lambda: GenerationRequest(wrong),
            lambda: Prompt(audio=wrong),
            lambda: foley.backend.predict_envelope(wrong),
            lambda: GenerationResult(RESULT.envelope, RESULT.takes, {}, wrong).save("out.mp4"),
        ):
            with pytest.raises(SettingError, match=words):
                call()  # type: ignore[no-untyped-call]


def test_options_as_keywords_or_object() -> None:
    envelope = np.full(50, 0.1)
    options = GenerateOptions(text="glass", seed=4)
    request = generation_request(None, envelope, None, options, {"seed": 5})
    assert (request.options.text, request.options.seed) == ("glass", 5)
    with pytest.raises(SettingError, match="no option 'sed'"):
        generation_request(None, envelope, None, None, {"sed": 5})
    with pytest.raises(SettingError, match="neither a video nor an envelope"):
        generation_request(None, None, None, None, {})


def test_envelope_is_array_curve_file_or_recording(video: Path, tmp_path: Path) -> None:
    curve = [0.1] * 150
    for source in (curve, np.array(curve)):
        given = generation_request(video, source, None, None, {}).envelope
        assert given
        assert (given.samples, given.source) == (24_000, "given")
    (tmp_path / "curve.json").write_text(envelope_file.dumps(np.array(curve, np.float32), ".json"))
    soundfile.write(tmp_path / "voice.wav", np.full(16_000, 0.1), 16_000)
    for name in ("curve.json", "voice.wav"):
        given = generation_request(video, str(tmp_path / name), None, None, {}).envelope
        assert given
        assert (given.samples, len(given.envelope), given.source) == (24_000, 150, name)
    alone = generation_request(None, tmp_path / "voice.wav", None, None, {}).envelope
    assert alone
    assert (alone.samples, len(alone.envelope)) == (16_000, 100)
    with pytest.raises(EnvelopeError, match="149 frames, the video needs 150"):
        generation_request(video, curve[1:], None, None, {})
    with pytest.raises(MediaError):
        generation_request(tmp_path / "missing.mp4", curve, None, None, {})


RESULT = GenerationResult(np.full(150, 0.1, np.float32), [Take(np.zeros(24_000, np.float32), {"seed": 3})])


def test_save_format_follows_extension(video: Path, tmp_path: Path) -> None:
    RESULT.save(str(tmp_path / "sound.wav"))
    assert soundfile.info(tmp_path / "sound.wav").frames == 24_000
    RESULT.save(tmp_path / "curve.csv")
    given = generation_request(None, tmp_path / "curve.csv", None, None, {}).envelope
    assert given
    np.testing.assert_allclose(given.envelope, RESULT.envelope, atol=1e-6)
    sizes = []
    for source in (video, video.read_bytes()):
        GenerationResult(RESULT.envelope, RESULT.takes, {}, source).save(tmp_path / "out.mp4")
        sizes.append((tmp_path / "out.mp4").stat().st_size)
    assert sizes[0] == sizes[1] > video.stat().st_size
    assert repr(RESULT) == "<GenerationResult: 1 x 1.50 s>"
    assert {path.name for path in tmp_path.iterdir()} == {"hits.mp4", "sound.wav", "curve.csv", "out.mp4"}


def test_save_errors(video: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="needs the video"):
        RESULT.save(tmp_path / "out.mp4")
    with pytest.raises(OutputError, match=r"\.xyz"):
        RESULT.save(tmp_path / "out.xyz")
    own = GenerationResult(RESULT.envelope, RESULT.takes, {}, video)
    with pytest.raises(OutputError):
        own.save(video)
    assert {path.name for path in tmp_path.iterdir()} == {"hits.mp4"}


def test_server_and_token_from_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingError, match=r"\$FOLEY_SERVER"):
        FoleyClient()
    monkeypatch.setenv("FOLEY_SERVER", "grpcs://foley.example.com")
    (tmp_path / "token").write_text("from-the-file\n")
    monkeypatch.setenv("FOLEY_TOKEN_FILE", str(tmp_path / "token"))
    with FoleyClient() as client:
        assert client.backend.channel.target == "foley.example.com:443"
        assert client.backend.channel.token == "from-the-file"
        assert repr(client) == "<FoleyClient grpcs://foley.example.com>"
    monkeypatch.setenv("FOLEY_TOKEN", "from-the-variable")
    with FoleyClient("localhost:1", token="given") as client:
        assert (client.backend.channel.target, client.backend.channel.token) == ("localhost:1", "given")
    with FoleyClient("grpc://localhost") as client:
        assert client.backend.channel.token == "from-the-variable"
    with pytest.raises(SettingError, match="max_retries is -1"):
        FoleyClient("grpc://localhost", max_retries=-1)
