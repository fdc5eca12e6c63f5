"""The `foley` command on real files."""

import hashlib
import json
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from foley import envelope_file
from foley.envelope import frames, measure, samples
from foley.media import probe
from foley_client.curves import read_envelope
from foley_pipeline.triton import TritonClient
from harness import riff

BIN = Path(__file__).resolve().parents[2] / ".venv" / "bin"

GOOD = [
    "fps24_with_audio.mp4",
    "fps2997.mp4",
    "fps60.mkv",
    "vfr.mp4",
    "odd_size_161x121_yuv444.mkv",
    "h264_10bit.mp4",
    "vp9.webm",
    "mjpeg.mov",
    "animated.gif",
    "short_5_frames.mp4",
]
BAD = {
    "audio_only.m4a": "no video",
    "empty.mp4": "empty",
    "text_named.mp4": "not a video",
    "truncated.mp4": "damaged",
    "bit_flips.mkv": "damaged",
    "single_frame.mp4": "no motion",
    "decode_bomb_4096x4096.mp4": "pixels",
    "ffconcat_reads_a_local_file.mp4": "not a video",
    "hls_reads_a_local_file.mp4": "not a video",
    "missing.mp4": "missing.mp4",
    ".": "not a file",
}


@pytest.fixture(autouse=True)
def _media_is_unchanged(media: Path) -> Iterator[None]:
    def digests() -> dict[str, str]:
        return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in media.rglob("*") if path.is_file()}

    before = digests()
    yield
    assert digests() == before


def test_standard_input_and_output_are_pipes(foley, triton: TritonClient, media: Path, tmp_path: Path) -> None:
    name = "fps24_with_audio.mp4"
    done = foley("generate", media / name, "-o", "sound.wav", "--steps", 1, "--seed", -1)
    assert done.returncode == 0, done.stderr
    seed = re.search(r"^seed: (\d+)$", done.stderr, re.M)
    assert seed
    options = f"--server {triton.url} --steps 1 --seed {seed[1]} -o - --format wav -o curve.csv"
    line = f"cat '{media / name}' | '{BIN / 'foley'}' generate - {options} | cat > piped.wav"
    subprocess.run(["bash", "-c", f"set -o pipefail; {line}"], cwd=tmp_path, check=True, timeout=300)
    np.testing.assert_array_equal(soundfile.read(tmp_path / "piped.wav")[0], soundfile.read(tmp_path / "sound.wav")[0])
    assert (tmp_path / "curve.csv").read_text().startswith("time_s,rms")
    assert riff.recipe(tmp_path / "sound.wav")["seed"] == int(seed[1])


def test_changes_of_the_video_are_printed(foley, media: Path, tmp_path: Path) -> None:
    done = foley("generate", media / "real_world" / "tags.mp4", "-o", "a.webm", "-o", "a.mp4", "--steps", 1)
    assert done.returncode == 0, done.stderr
    assert "the picture is encoded again as VP9: .webm does not hold H.264" in done.stderr.splitlines()
    assert done.stderr.count("encoded again") == 1
    with av.open(str(tmp_path / "a.mp4")) as result:
        assert result.metadata["comment"] == "shot on set"


@pytest.mark.parametrize("name", GOOD)
def test_generated_sound_has_exact_length_of_video(foley, media: Path, tmp_path: Path, name: str) -> None:
    done = foley("generate", media / name, "-o", "sound.wav", "-o", "video.mp4", "--steps", 1)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["sound.wav", "video.mp4"]
    sound, rate = soundfile.read(tmp_path / "sound.wav")
    assert rate == 16_000
    assert len(sound) == samples(probe(media / name).duration_s)
    assert np.abs(sound).max() > 0
    with av.open(str(tmp_path / "video.mp4")) as result:
        assert len(result.streams.video) == len(result.streams.audio) == 1
        recipe = json.loads(result.metadata["foley_recipe"])
    assert recipe["seed"] == 0
    assert recipe["steps"] == 1
    assert recipe["video_sha256"] == hashlib.sha256((media / name).read_bytes()).hexdigest()
    assert recipe["envelope"] == "predicted"
    assert {"foley", "triton", "onnxruntime", "bundle_sha256", "envelope_sha256"} <= recipe.keys()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sound.wav", "video.mp4"]


@pytest.mark.parametrize(("name", "reason"), BAD.items(), ids=BAD)
def test_bad_video_is_reported_and_leaves_no_files(foley, media: Path, tmp_path: Path, name: str, reason: str) -> None:
    result = foley("generate", media / name, "-o", "result.mp4", "-o", "result.wav", "--steps", 1)
    assert result.returncode == 2, result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line.strip()]
    assert line.startswith("error: ")
    assert reason in line
    assert list(tmp_path.iterdir()) == []


def test_same_seed_gives_same_sound(foley, media: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        arguments = ("--text", "a stick hits metal", "--negative-text", "music", "--steps", 2, "--seed", seed)
        foley("generate", media / "fps2997.mp4", *arguments, "-o", f"{name}.wav").check_returncode()
    a, b, c = (soundfile.read(tmp_path / f"{name}.wav")[0] for name in "abc")
    np.testing.assert_array_equal(a, b)
    assert not np.allclose(a, c, atol=1e-2)


def options(recipe: dict[str, object]) -> list[str]:
    """Return the options of `foley generate` that reproduce a recipe with a predicted envelope."""
    names = ("text", "negative_text", "seed", "steps", "sampler", "timestep_spacing", "guidance", "loudness")
    found = [f"--{name.replace('_', '-')}={recipe[name]}" for name in (*names, "flow", "eta") if recipe[name]]
    low, high = recipe["guidance_interval"]  # type: ignore[misc]
    return [*found, "--guidance-interval", str(low), str(high)]


@pytest.mark.parametrize(
    ("chosen", "flow"),
    [
        (["--flow", "dis"], "dis"),
        (["--flow", "warm", "--loudness", "follow"], "warm"),
        (["--profile", "fast", "--negative-text", "music"], "warm"),
        (["--sampler", "ddim", "--eta", "0.5", "--seed", "7"], "default"),
    ],
    ids=" ".join,
)
def test_recipe_reproduces_sound(foley, repository: Path, tmp_path: Path, chosen: list[str], flow: str) -> None:
    video = repository / "examples" / "drumstick.mp4"
    foley("generate", video, "--text=wood", "--steps=3", *chosen, "-o", "first.wav").check_returncode()
    recipe = riff.recipe(tmp_path / "first.wav")
    assert recipe["flow"] == flow
    foley("generate", video, *options(recipe), "-o", "again.wav").check_returncode()
    first, repeated = (soundfile.read(tmp_path / name, dtype="int16")[0] for name in ("first.wav", "again.wav"))
    np.testing.assert_array_equal(repeated, first)


def test_recipe_has_no_optical_flow_for_given_envelope(foley, media: Path, tmp_path: Path) -> None:
    video = media / "short_5_frames.mp4"
    foley("envelope", video, "-o", "curve.csv").check_returncode()
    on_curve = ("--flow=dis", "--envelope=curve.csv", "--steps=1")
    foley("generate", video, *on_curve, "-o", "sound.wav").check_returncode()
    assert riff.recipe(tmp_path / "sound.wav")["flow"] is None


@pytest.mark.parametrize("ending", [".json", ".csv"])
def test_edited_envelope_file_controls_sound(foley, media: Path, tmp_path: Path, ending: str) -> None:
    video, curve = media / "fps24_with_audio.mp4", f"curve{ending}"
    foley("envelope", video, "-o", curve, "-o", "curve.png").check_returncode()
    predicted = envelope_file.read(tmp_path / curve)
    assert len(predicted) == frames(probe(video).duration_s)
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")

    edited = np.zeros_like(predicted)
    edited[60:120] = 0.2
    (tmp_path / curve).write_text(envelope_file.dumps(edited, ending))
    options = ("--envelope", curve, "--loudness", "follow", "--steps", 1)
    foley("generate", video, *options, "-o", "sound.wav", "-o", "sound.png").check_returncode()
    produced = measure(soundfile.read(tmp_path / "sound.wav", dtype="float32")[0])
    assert np.corrcoef(produced, edited)[0, 1] > 0.9

    (tmp_path / curve).write_text(envelope_file.dumps(edited[:-1], ending))
    done = foley("generate", video, *options, "-o", "late.wav")
    assert done.returncode == 2
    assert f"{len(edited)}" in done.stderr
    assert not (tmp_path / "late.wav").exists()


def test_envelope_and_audio_prompt_from_recordings(foley, media: Path, tmp_path: Path) -> None:
    """A recording shorter than the video is followed by silence."""
    noise = np.random.default_rng(0).standard_normal(16_000) * np.linspace(0.3, 0, 16_000)
    soundfile.write(tmp_path / "voice.wav", noise, 16_000)
    video = media / "fps24_with_audio.mp4"
    options = ("--envelope", "voice.wav", "--audio", media / "audio_only.m4a", "--loudness", "follow", "--steps", 1)
    foley("generate", video, *options, "-o", "sound.wav").check_returncode()
    sound = soundfile.read(tmp_path / "sound.wav", dtype="float32")[0]
    assert len(sound) == samples(probe(video).duration_s)
    assert np.corrcoef(measure(sound)[:100], measure(noise.astype(np.float32))[:100])[0, 1] > 0.9
    assert np.abs(sound[17_000:]).max() < 0.01

    foley("generate", video, *options, "--envelope-filter", "official", "-o", "curve.csv").check_returncode()
    filtered = read_envelope(tmp_path / "voice.wav", probe(video).duration_s, "official")
    np.testing.assert_allclose(envelope_file.read(tmp_path / "curve.csv"), filtered.envelope, atol=1e-6)


def test_source_audio_modes(foley, media: Path, tmp_path: Path) -> None:
    video = media / "fps24_with_audio.mp4"
    for mode, tracks in (("replace", 1), ("mix", 1), ("keep", 2)):
        options = ("--source-audio", mode, "--steps", 1, "--envelope", video)
        foley("generate", video, *options, "-o", f"{mode}.mp4").check_returncode()
        with av.open(str(tmp_path / f"{mode}.mp4")) as result:
            assert len(result.streams.audio) == tracks


def test_variations_are_saved_with_numbers(foley, media: Path, tmp_path: Path) -> None:
    result = foley("generate", media / "fps2997.mp4", "--variations", 2, "--steps", 1, "-o", "hit.wav")
    assert result.stdout.split() == ["hit-1.wav", "hit-2.wav"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hit-1.wav", "hit-2.wav"]


def test_sound_for_post_production(foley, media: Path, tmp_path: Path) -> None:
    video = media / "real_world" / "tmcd.mov"
    options = ("--sample-rate", 48_000, "--bit-depth", 24, "--variations", 2, "--steps", 1)
    foley("generate", video, *options, "-o", "take.wav", "-o", "take.flac").check_returncode()
    for i in (1, 2):
        sounds = [soundfile.read(tmp_path / f"take-{i}{extension}", dtype="int32") for extension in (".wav", ".flac")]
        assert [rate for _, rate in sounds] == [48_000, 48_000]
        assert len(sounds[0][0]) == samples(probe(video).duration_s, 48_000)
        np.testing.assert_array_equal(sounds[0][0], sounds[1][0])
        assert soundfile.info(tmp_path / f"take-{i}.wav").subtype == "PCM_24"
        with av.open(str(tmp_path / f"take-{i}.wav")) as container:  # 01:02:03:04 at 30 fps
            assert container.metadata["time_reference"] == str(3723 * 48_000 + 4 * 1_600)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--steps", "0"], "steps is '0'"),
        (["--sample-rate", "48"], "sample_rate is '48': use 16,000 to 192,000"),
        (["--bit-depth", "8"], "32f"),
        (["--bit-depth", "32f", "-o", "take.flac"], "use a bit depth of 16 or 24, or .wav"),
        (["--sampler", "euler"], "ddim"),
        (["--text", "wood", "--audio", "wood.wav"], "give one of them"),
        (["--guidance", "0.5"], "guidance"),
        (["--guidance", "nan"], "guidance"),
        (["--seed", "-1"], "seed"),
        (["--variations", "0"], "variations"),
        (["--variations", "17"], "variations"),
        (["--variations", "1000000000"], "variations"),
        (["--variations", "2", "--seed", str(2**64 - 1)], "seed"),
        (["--text", "\udcff"], "UTF-8"),
        (["--negative-text", "a" * 3000], "characters"),
        (["--server", "127.0.0.1:9", "--bundle", "mine"], "--bundle"),
        (["--server", "localhost"], "HOST:PORT"),
        (["-o", "x" * 300 + ".wav"], "too long"),
        (["--envelope", "missing.csv"], "missing.csv"),
        (["--envelope", "missing.wav"], "missing.wav"),
        (["--envelope-filter", "official"], "applies to recordings"),
        (["--envelope", "curve.csv", "--envelope-filter", "official"], "applies to recordings"),
        (["--audio", "missing.wav"], "missing.wav"),
        (["--text", "a" * 3000], "characters"),
        (["-o", "missing/result.mp4"], "missing"),
        (["-o", "result.xyz"], "xyz"),
        (["-o", "a.wav", "-o", "a.wav"], "twice"),
        (["--server", "127.0.0.1:9"], "127.0.0.1:9"),
    ],
    ids=lambda value: " ".join(value)[:30] if isinstance(value, list) else None,
)
def test_invalid_option_exits_with_code_2(
    foley, media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], reason: str
) -> None:
    """Reported before the server is called; no server runs at the address."""
    monkeypatch.setenv("FOLEY_SERVER", "127.0.0.1:9")
    result = foley("generate", media / "fps2997.mp4", *arguments)
    assert result.returncode == 2, result.stderr
    assert reason in result.stderr
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", ["--audio", "--envelope"])
def test_input_is_never_overwritten(foley, media: Path, tmp_path: Path, option: str) -> None:
    recording = tmp_path / "voice.mp4"
    shutil.copy(media / "fps24_with_audio.mp4", recording)
    before = recording.read_bytes()
    (tmp_path / "folder").mkdir()
    for name in ("voice.mp4", "folder/../voice.mp4"):
        result = foley("generate", media / "fps2997.mp4", option, recording, "-o", name, "--steps", 1)
        assert result.returncode == 2
        assert "is the input file" in result.stderr
    assert recording.read_bytes() == before


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_while_writing_leaves_no_files(
    triton: TritonClient, media: Path, tmp_path: Path, end: signal.Signals
) -> None:
    """Neither the unfinished output nor the completed one is left."""
    curve = ("--envelope", media / "fps24_with_audio.mp4")
    command = [BIN / "foley", "generate", media / "fps60.mkv", *curve, "--steps", "1", "--server", triton.url]
    call = subprocess.Popen(
        [*command, "-o", "first.wav", "-o", "second.webm"], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    while not list(tmp_path.glob(".foley-*.webm")):
        assert call.poll() is None
        time.sleep(0.005)
    call.send_signal(end)
    _, message = call.communicate(timeout=60)
    assert call.returncode == 130
    assert "stopped" in message
    assert "Traceback" not in message
    assert list(tmp_path.iterdir()) == []


def test_help_includes_example(foley) -> None:
    for command in ("generate", "envelope"):
        text = foley(command, "--help").stdout
        assert f"foley {command} hits.mp4" in text
