"""The cache of envelopes and embeddings: hits skip inference and leave results unchanged; changes cause misses."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from foley.envelope import samples
from foley.errors import MediaError, SettingError
from foley.media import probe
from foley.options import GenerateOptions
from foley_pipeline.cache import Cache
from foley_pipeline.prompt import Prompt
from foley_pipeline.request import EnvelopeInput, GenerationRequest
from foley_pipeline.triton import TritonClient
from foley_pipeline.triton_backend import TritonBackend
from harness.settled import settled

MODELS = ("optical_flow", "rgb_features", "flow_features", "video2rms", "clap_text", "clap_audio", "denoiser")
TEXT = ("--text", "a stick hits metal", "--steps", 1)


class Calls:
    """Counts the inferences of each model since the last call of `new`."""

    def __init__(self, triton: TritonClient) -> None:
        self._triton = triton
        self._before = settled(self._counts)

    def _counts(self) -> dict[str, int]:
        return {model: int(self._triton.statistics(model).get("inference_count", 0)) for model in MODELS}

    def new(self) -> dict[str, int]:
        before, self._before = self._before, settled(self._counts)
        return {model: count - before[model] for model, count in self._before.items() if count > before[model]}


@pytest.fixture
def calls(triton: TritonClient) -> Calls:
    return Calls(triton)


@pytest.fixture
def cached(triton: TritonClient, tmp_path: Path) -> TritonBackend:
    return TritonBackend(triton, cache=Cache(tmp_path / "results"))


def sound(path: Path) -> np.ndarray:
    return soundfile.read(path, dtype="int16")[0]


def test_changed_inputs_rerun_only_dependent_models(foley, media: Path, tmp_path: Path, calls: Calls) -> None:
    video = media / "fps2997.mp4"

    def generate(*options: object) -> dict[str, int]:
        done = foley("generate", video, *options, "-o", "sound.wav")
        assert done.returncode == 0, done.stderr
        new = calls.new()
        cached = "envelope, from the cache" in done.stderr
        assert cached == ("optical_flow" not in new and "--envelope" not in options)
        return new

    first = generate(*TEXT)
    assert first.keys() == set(MODELS) - {"clap_audio"}
    assert first["clap_text"] == 2  # the text, and the empty negative text
    assert generate(*TEXT) == {"denoiser": 1}
    assert generate(*TEXT, "--seed", 5, "--guidance", 2) == {"denoiser": 1}
    assert generate("--text", "glass", "--steps", 1) == {"clap_text": 1, "denoiser": 1}
    assert generate(*TEXT, "--negative-text", "glass") == {"denoiser": 1}  # shared between text and negative text
    recording = ("--audio", media / "audio_only.m4a", "--steps", 1)
    assert generate(*recording) == {"clap_audio": 1, "denoiser": 1}
    assert generate(*recording, "--seed", 5) == {"denoiser": 1}
    foley("envelope", video, "-o", "curve.csv").check_returncode()
    assert calls.new() == {}
    assert generate(*TEXT, "--envelope", "curve.csv") == {"denoiser": 1}
    assert generate(*TEXT, "--no-cache").keys() == first.keys()
    (tmp_path / "copy.mp4").write_bytes(video.read_bytes())
    video = tmp_path / "copy.mp4"  # the key is the content
    assert generate(*TEXT) == {"denoiser": 1}
    video.write_bytes((media / "vfr.mp4").read_bytes())
    assert generate(*TEXT).keys() == first.keys() - {"clap_text"}


def test_cached_output_is_bit_identical(foley, media: Path, tmp_path: Path) -> None:
    options = ("generate", media / "fps2997.mp4", "--negative-text", "music", *TEXT, "-o")
    foley(*options, "plain.wav", "-o", "plain.csv", "--no-cache").check_returncode()
    foley(*options, "first.wav", "-o", "first.csv").check_returncode()
    done = foley(*options, "second.wav", "-o", "second.csv")
    assert "envelope, from the cache" in done.stderr
    assert "prompt, from the cache" in done.stderr
    for name in ("first", "second"):
        assert (tmp_path / f"{name}.csv").read_bytes() == (tmp_path / "plain.csv").read_bytes()
        np.testing.assert_array_equal(sound(tmp_path / f"{name}.wav"), sound(tmp_path / "plain.wav"))


def test_cached_embeddings_and_envelopes_are_bit_identical(
    backend: TritonBackend, cached: TritonBackend, media: Path, calls: Calls
) -> None:
    video, prompts = media / "vfr.mp4", [Prompt("wood", negative_text="music"), Prompt(audio=media / "audio_only.m4a")]
    plain = [backend.predict_envelope(video), *(one for prompt in prompts for one in backend.embed_prompt(prompt))]
    for _ in range(2):
        found = [cached.predict_envelope(video), *(one for prompt in prompts for one in cached.embed_prompt(prompt))]
        calls.new()
        for ours, theirs in zip(found, plain, strict=True):
            assert ours.dtype == theirs.dtype == np.float32
            np.testing.assert_array_equal(ours, theirs)
    cached.predict_envelope(video)
    cached.embed_prompt(prompts[1])
    assert calls.new() == {}


def test_backend_without_cache_recomputes(backend: TritonBackend, media: Path, calls: Calls) -> None:
    for _ in range(2):
        backend.predict_envelope(media / "short_5_frames.mp4")
        assert calls.new()["optical_flow"] == 1


def test_damaged_or_unwritable_cache_is_ignored(
    foley, triton: TritonClient, media: Path, tmp_path: Path, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOLEY_CACHE", str(tmp_path / "cache"))
    command = ("generate", media / "short_5_frames.mp4", *TEXT, "-o")
    foley(*command, "a.wav").check_returncode()
    entries = list((tmp_path / "cache" / "results").iterdir())
    assert len(entries) == 3
    for entry in entries:
        entry.write_bytes(entry.read_bytes()[:-1])
    calls.new()
    foley(*command, "b.wav").check_returncode()
    assert "optical_flow" in calls.new()
    monkeypatch.setenv("FOLEY_CACHE", "/proc/nowhere")
    foley(*command, "c.wav").check_returncode()
    np.testing.assert_array_equal(sound(tmp_path / "b.wav"), sound(tmp_path / "a.wav"))
    np.testing.assert_array_equal(sound(tmp_path / "c.wav"), sound(tmp_path / "a.wav"))


def test_bundle_and_versions_are_part_of_the_key(
    cached: TritonBackend, triton: TritonClient, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached.embed_prompt(Prompt("wood"))
    for key in ("bundle_sha256", "onnxruntime", "target", "precision"):
        monkeypatch.setattr(triton, "versions", {**triton.versions, key: "another"})
        calls.new()
        cached.embed_prompt(Prompt("wood"))
        assert calls.new() == {"clap_text": 2}


def test_video_modified_while_read_is_not_cached(
    cached: TritonBackend, media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    video = tmp_path / "video.mp4"
    video.write_bytes((media / "short_5_frames.mp4").read_bytes())
    infer = cached.triton.infer

    def overwrite_video(stage: str, *arguments: object, **inputs: object) -> object:
        video.write_bytes((media / "vfr.mp4").read_bytes())
        return infer(stage, *arguments, **inputs)

    monkeypatch.setattr(cached.triton, "infer", overwrite_video)
    cached.predict_envelope(video)
    assert not (tmp_path / "results").exists()


def test_concurrent_stages_match_separate_calls(backend: TritonBackend, media: Path) -> None:
    """The envelope and the prompt of a video are computed concurrently."""
    video, options = media / "vfr.mp4", GenerateOptions(text="wood", steps=1)
    from_video = backend.generate(GenerationRequest(video, options=options))
    assert from_video.timings_s.keys() == {"prompt", "features", "video2rms", "denoise", "decode"}
    envelope = backend.predict_envelope(video)
    np.testing.assert_array_equal(from_video.envelope, envelope)
    given = EnvelopeInput(envelope, samples(probe(video).duration_s), "predicted")
    from_envelope = backend.generate(GenerationRequest(video, given, options=options))
    np.testing.assert_array_equal(from_video.waveform, from_envelope.waveform)
    assert {**from_video.recipe, "flow": None} == from_envelope.recipe


@pytest.mark.parametrize("with_cache", [False, True])
def test_error_in_one_stage_stops_the_other(
    triton: TritonClient, repository: Path, media: Path, tmp_path: Path, calls: Calls, with_cache: bool
) -> None:
    backend = TritonBackend(triton, cache=Cache(tmp_path / "results") if with_cache else None)
    video = repository / "examples" / "steel.mp4"
    with pytest.raises(MediaError, match=r"missing\.wav"):
        backend.generate(GenerationRequest(video, audio=tmp_path / "missing.wav"))
    assert calls.new().get("video2rms", 0) == 0  # some chunks may already be in flight
    with pytest.raises(MediaError, match="no video"):
        backend.generate(GenerationRequest(media / "audio_only.m4a", options=GenerateOptions(text="wood")))


def test_unknown_optical_flow_is_rejected(backend: TritonBackend, media: Path) -> None:
    with pytest.raises(SettingError, match="'none'"):
        backend.predict_envelope(media / "vfr.mp4", flow="none")  # type: ignore[arg-type]
