"""Work that was done before is not done again, nobody hears it, and what depends on a change is done."""

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

MODELS = ("optical_flow", "rgb_features", "flow_features", "video2rms", "clap_text", "clap_audio", "denoiser")
TEXT = ("--text", "a stick hits metal", "--steps", 1)


class Calls:
    """Which models were called since the last time one asked, and how often."""

    def __init__(self, triton: TritonClient) -> None:
        self._triton = triton
        self._before = self._counts()

    def _counts(self) -> dict[str, int]:
        return {model: int(self._triton.statistics(model).get("inference_count", 0)) for model in MODELS}

    def new(self) -> dict[str, int]:
        before, self._before = self._before, self._counts()
        return {model: count - before[model] for model, count in self._before.items() if count > before[model]}


@pytest.fixture
def calls(triton: TritonClient) -> Calls:
    return Calls(triton)


@pytest.fixture
def cached(triton: TritonClient, tmp_path: Path) -> TritonBackend:
    return TritonBackend(triton, cache=Cache(tmp_path / "results"))


def sound(path: Path) -> np.ndarray:
    return soundfile.read(path, dtype="int16")[0]


def test_only_what_depends_on_a_change_is_done_again(foley, media: Path, tmp_path: Path, calls: Calls) -> None:
    video = media / "fps2997.mp4"

    def again(*options: object) -> dict[str, int]:
        done = foley("generate", video, *options, "-o", "sound.wav")
        assert done.returncode == 0, done.stderr
        new = calls.new()
        cached = "envelope, from the cache" in done.stderr
        assert cached == ("optical_flow" not in new and "--envelope" not in options)
        return new

    first = again(*TEXT)
    assert first.keys() == set(MODELS) - {"clap_audio"}
    assert first["clap_text"] == 2  # the text, and the empty one that is the negative of every prompt
    assert again(*TEXT) == {"denoiser": 1}
    assert again(*TEXT, "--seed", 5, "--guidance", 2) == {"denoiser": 1}
    assert again("--text", "glass", "--steps", 1) == {"clap_text": 1, "denoiser": 1}
    assert again(*TEXT, "--negative-text", "glass") == {"denoiser": 1}  # a text is a text, whatever it is for
    recording = ("--audio", media / "audio_only.m4a", "--steps", 1)
    assert again(*recording) == {"clap_audio": 1, "denoiser": 1}
    assert again(*recording, "--seed", 5) == {"denoiser": 1}
    foley("envelope", video, "-o", "curve.csv").check_returncode()
    assert calls.new() == {}
    assert again(*TEXT, "--envelope", "curve.csv") == {"denoiser": 1}
    assert again(*TEXT, "--no-cache").keys() == first.keys()
    (tmp_path / "copy.mp4").write_bytes(video.read_bytes())
    video = tmp_path / "copy.mp4"  # it is the content that counts
    assert again(*TEXT) == {"denoiser": 1}
    video.write_bytes((media / "vfr.mp4").read_bytes())
    assert again(*TEXT).keys() == first.keys() - {"clap_text"}


def test_a_cached_result_is_the_same_to_the_last_bit(foley, media: Path, tmp_path: Path) -> None:
    options = ("generate", media / "fps2997.mp4", "--negative-text", "music", *TEXT, "-o")
    foley(*options, "plain.wav", "-o", "plain.csv", "--no-cache").check_returncode()
    foley(*options, "first.wav", "-o", "first.csv").check_returncode()
    done = foley(*options, "second.wav", "-o", "second.csv")
    assert "envelope, from the cache" in done.stderr
    assert "prompt, from the cache" in done.stderr
    for name in ("first", "second"):
        assert (tmp_path / f"{name}.csv").read_bytes() == (tmp_path / "plain.csv").read_bytes()
        np.testing.assert_array_equal(sound(tmp_path / f"{name}.wav"), sound(tmp_path / "plain.wav"))


def test_embeddings_and_envelopes_are_the_same_to_the_last_bit(
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


def test_the_sdk_keeps_nothing_unless_it_is_told_to(backend: TritonBackend, media: Path, calls: Calls) -> None:
    for _ in range(2):
        backend.predict_envelope(media / "short_5_frames.mp4")
        assert calls.new()["optical_flow"] == 1


def test_a_damaged_cache_or_none_that_can_be_written_is_not_felt(
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


def test_another_bundle_or_version_is_another_entry(
    cached: TritonBackend, triton: TritonClient, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached.embed_prompt(Prompt("wood"))
    for key in ("bundle_sha256", "onnxruntime", "target", "precision"):
        monkeypatch.setattr(triton, "versions", {**triton.versions, key: "another"})
        calls.new()
        cached.embed_prompt(Prompt("wood"))
        assert calls.new() == {"clap_text": 2}


def test_a_video_that_changes_while_it_is_read_is_not_kept(
    cached: TritonBackend, media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    video = tmp_path / "video.mp4"
    video.write_bytes((media / "short_5_frames.mp4").read_bytes())
    infer = cached.triton.infer

    def meanwhile(stage: str, *arguments: object, **inputs: object) -> object:
        video.write_bytes((media / "vfr.mp4").read_bytes())
        return infer(stage, *arguments, **inputs)

    monkeypatch.setattr(cached.triton, "infer", meanwhile)
    cached.predict_envelope(video)
    assert not (tmp_path / "results").exists()


def test_both_at_once_give_what_each_gives_alone(backend: TritonBackend, media: Path) -> None:
    """The envelope and the prompt of a video are computed concurrently."""
    video, options = media / "vfr.mp4", GenerateOptions(text="wood", steps=1)
    whole = backend.generate(GenerationRequest(video, options=options))
    assert whole.timings_s.keys() == {"prompt", "features", "video2rms", "denoise", "decode"}
    envelope = backend.predict_envelope(video)
    np.testing.assert_array_equal(whole.envelope, envelope)
    given = EnvelopeInput(envelope, samples(probe(video).duration_s), "predicted")
    alone = backend.generate(GenerationRequest(video, given, options=options))
    np.testing.assert_array_equal(whole.waveform, alone.waveform)
    assert {**whole.recipe, "flow": None} == alone.recipe


@pytest.mark.parametrize("with_cache", [False, True])
def test_an_error_of_one_is_raised_and_stops_the_other(
    triton: TritonClient, repository: Path, media: Path, tmp_path: Path, calls: Calls, with_cache: bool
) -> None:
    backend = TritonBackend(triton, cache=Cache(tmp_path / "results") if with_cache else None)
    video = repository / "examples" / "steel.mp4"
    with pytest.raises(MediaError, match=r"missing\.wav"):
        backend.generate(GenerationRequest(video, audio=tmp_path / "missing.wav"))
    assert calls.new().get("video2rms", 0) == 0  # of the chunks some were on their way
    with pytest.raises(MediaError, match="no video"):
        backend.generate(GenerationRequest(media / "audio_only.m4a", options=GenerateOptions(text="wood")))


def test_an_optical_flow_that_is_not_served_is_named(backend: TritonBackend, media: Path) -> None:
    with pytest.raises(SettingError, match="'none'"):
        backend.predict_envelope(media / "vfr.mp4", flow="none")  # type: ignore[arg-type]
