"""Work that was done before is not done again, nobody hears it, and what depends on a change is done."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from foley import envelope
from foley.errors import MediaError, SettingError
from foley.media import probe
from foley.sampler import Sampling
from foley_client import Foley, Prompt, Triton, Watch
from foley_pipeline.cache import Cache

MODELS = ("optical_flow", "rgb_features", "flow_features", "video2rms", "clap_text", "clap_audio", "denoiser")
TEXT = ("--text", "a stick hits metal", "--steps", 1)


class Calls:
    """Which models were called since the last time one asked, and how often."""

    def __init__(self, triton: Triton) -> None:
        self._triton = triton
        self._before = self._counts()

    def _counts(self) -> dict[str, int]:
        return {model: int(self._triton.statistics(model).get("inference_count", 0)) for model in MODELS}

    def new(self) -> dict[str, int]:
        before, self._before = self._before, self._counts()
        return {model: count - before[model] for model, count in self._before.items() if count > before[model]}


@pytest.fixture
def calls(triton: Triton) -> Calls:
    return Calls(triton)


@pytest.fixture
def cached(triton: Triton, tmp_path: Path) -> Foley:
    return Foley(triton, Cache(tmp_path / "results"))


def sound(path: Path) -> np.ndarray:
    return soundfile.read(path, dtype="int16")[0]


def test_only_what_depends_on_a_change_is_done_again(foley, media: Path, tmp_path: Path, calls: Calls) -> None:
    video = media / "fps2997.mp4"

    def again(*options: object) -> dict[str, int]:
        done = foley("generate", video, *options, "-o", "sound.wav")
        assert done.returncode == 0, done.stderr
        new = calls.new()
        assert ("envelope, seen before" in done.stderr) == ("optical_flow" not in new and "--envelope" not in options)
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
    assert "envelope, seen before" in done.stderr
    assert "prompt, seen before" in done.stderr
    for name in ("first", "second"):
        assert (tmp_path / f"{name}.csv").read_bytes() == (tmp_path / "plain.csv").read_bytes()
        np.testing.assert_array_equal(sound(tmp_path / f"{name}.wav"), sound(tmp_path / "plain.wav"))


def test_embeddings_and_envelopes_are_the_same_to_the_last_bit(
    foley_sdk: Foley, cached: Foley, media: Path, calls: Calls
) -> None:
    video, prompts = media / "vfr.mp4", [Prompt("wood", negative_text="music"), Prompt(audio=media / "audio_only.m4a")]
    plain = [foley_sdk.predict_envelope(video), *(one for prompt in prompts for one in foley_sdk.embed(prompt))]
    for _ in range(2):
        found = [cached.predict_envelope(video), *(one for prompt in prompts for one in cached.embed(prompt))]
        calls.new()
        for ours, theirs in zip(found, plain, strict=True):
            assert ours.dtype == theirs.dtype == np.float32
            np.testing.assert_array_equal(ours, theirs)
    cached.predict_envelope(video)
    cached.embed(prompts[1])
    assert calls.new() == {}


def test_the_sdk_keeps_nothing_unless_it_is_told_to(foley_sdk: Foley, media: Path, calls: Calls) -> None:
    for _ in range(2):
        foley_sdk.predict_envelope(media / "short_5_frames.mp4")
        assert calls.new()["optical_flow"] == 1


def test_a_damaged_cache_or_none_that_can_be_written_is_not_felt(
    foley, triton: Triton, media: Path, tmp_path: Path, calls: Calls, monkeypatch: pytest.MonkeyPatch
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
    cached: Foley, triton: Triton, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached.embed(Prompt("wood"))
    for key in ("bundle_sha256", "onnxruntime", "target", "precision"):
        monkeypatch.setattr(triton, "versions", {**triton.versions, key: "another"})
        calls.new()
        cached.embed(Prompt("wood"))
        assert calls.new() == {"clap_text": 2}


def test_a_video_that_changes_while_it_is_read_is_not_kept(
    cached: Foley, media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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


def test_both_at_once_give_what_each_gives_alone(foley_sdk: Foley, media: Path) -> None:
    video, prompt, watch = media / "vfr.mp4", Prompt("wood", negative_text="music"), Watch()
    curve, embeddings = foley_sdk.prepare(video, prompt, watch)
    assert watch.timings_s.keys() == {"prompt", "optical flow and features", "Video2RMS"}
    np.testing.assert_array_equal(curve, foley_sdk.predict_envelope(video))
    np.testing.assert_array_equal(embeddings, foley_sdk.embed(prompt))
    samples = envelope.samples(probe(video).duration_s)
    (ahead,) = foley_sdk.generate(curve, samples, prompt, Sampling(steps=1), embeddings=embeddings)
    (alone,) = foley_sdk.generate(curve, samples, prompt, Sampling(steps=1))
    np.testing.assert_array_equal(ahead.waveform, alone.waveform)
    assert json.dumps(ahead.recipe) == json.dumps(alone.recipe)


@pytest.mark.parametrize("with_cache", [False, True])
def test_an_error_of_one_is_raised_and_stops_the_other(
    triton: Triton, repository: Path, media: Path, tmp_path: Path, calls: Calls, with_cache: bool
) -> None:
    foley = Foley(triton, Cache(tmp_path / "results") if with_cache else None)
    video = repository / "examples" / "steel.mp4"
    with pytest.raises(MediaError, match=r"missing\.wav"):
        foley.prepare(video, Prompt(audio=tmp_path / "missing.wav"))
    assert calls.new().get("video2rms", 0) == 0  # of the chunks some were on their way
    with pytest.raises(MediaError, match="no video"):
        foley.prepare(media / "audio_only.m4a", Prompt("wood"))


def test_an_optical_flow_that_is_not_served_is_named(foley_sdk: Foley, media: Path) -> None:
    with pytest.raises(SettingError, match="'none'"):
        foley_sdk.predict_envelope(media / "vfr.mp4", flow="none")  # type: ignore[arg-type]
