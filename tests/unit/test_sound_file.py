"""Sound files are exact, are placed on the clock of their video, and say how they were made."""

import json
import resource
import struct
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from foley import broadcast_wave
from foley.errors import OutputError, SettingError
from foley.output import replacing
from foley.sound_file import SOUND_EXTENSIONS, write_sound
from foley.sound_format import BitDepth, SoundFormat
from foley.sound_tags import SoundTags
from foley.timecode import Recorded, Timecode
from foley_client import GenerationResult, Take
from foley_client.render.row import Row
from harness import riff
from harness.media_files import REAL_WORLD, needs_media
from harness.resampling import resample

RATE = 16_000
HOUR = Recorded(Fraction(3600), Timecode(107_892, Fraction(30_000, 1001), True), "2026-05-04", "10:20:30")
TAGS = SoundTags("a stick hits metal", '{"seed": 7}', HOUR)
FORMATS = [(".wav", "16"), (".wav", "24"), (".wav", "32f"), (".flac", "16"), (".flac", "24")]


def noise(samples: int) -> np.ndarray:
    return np.random.default_rng(samples).normal(0, 0.3, samples).astype(np.float32)


def expected_samples(waveform: np.ndarray, bit_depth: str) -> np.ndarray:
    """Return what a reader finds: rounded to multiples of 2 ** -(bits - 1) and clipped; float32 exactly."""
    if bit_depth == "32f":
        return waveform.astype(np.float64)
    full = 2.0 ** (int(bit_depth) - 1)
    return np.clip(np.round(waveform.astype(np.float64) * full), -full, full - 1) / full


@pytest.mark.parametrize(("extension", "bit_depth"), FORMATS)
@pytest.mark.parametrize("rate", [None, 44_100, 48_000, 96_000])
def test_samples_are_exact(tmp_path: Path, extension: str, bit_depth: BitDepth, rate: int | None) -> None:
    path, sound = tmp_path / f"take{extension}", noise(2 * RATE + 1)
    write_sound(path, sound, RATE, SoundFormat(rate, bit_depth), TAGS)
    new_rate = rate or RATE
    samples, found_rate = soundfile.read(path, dtype="float64")
    assert found_rate == new_rate
    assert soundfile.info(path).subtype == {"16": "PCM_16", "24": "PCM_24", "32f": "FLOAT"}[bit_depth]
    resampled = resample(sound[None], RATE, new_rate)[0]
    np.testing.assert_array_equal(samples, expected_samples(resampled, bit_depth))
    with av.open(str(path)) as container:  # FFmpeg
        frames = [frame.to_ndarray().reshape(-1) for frame in container.decode(audio=0)]
    assert sum(map(len, frames)) == len(samples)


@given(st.integers(1, 200), st.sampled_from(FORMATS))
@settings(deadline=None, max_examples=40)
def test_any_number_of_samples_is_a_whole_file(tmp_path_factory: pytest.TempPathFactory, samples: int, kind) -> None:
    extension, bit_depth = kind
    path, sound = tmp_path_factory.mktemp("any") / f"take{extension}", noise(samples)
    write_sound(path, sound, RATE, SoundFormat(None, bit_depth), TAGS)
    if extension == ".wav":
        assert set(riff.chunks(path)) >= {"fmt ", "bext", "iXML", "data"}
    np.testing.assert_array_equal(soundfile.read(path)[0], expected_samples(sound, bit_depth))


@pytest.mark.parametrize(("extension", "bit_depth"), FORMATS)
def test_integers_are_clipped_and_floats_are_not(tmp_path: Path, extension: str, bit_depth: BitDepth) -> None:
    path = tmp_path / f"take{extension}"
    write_sound(path, np.array([0, 0.5, -1, 1, 1.5, -7], np.float32), RATE, SoundFormat(None, bit_depth))
    expected = [0, 0.5, -1, 1, 1.5, -7] if bit_depth == "32f" else [0, 0.5, -1, 1, 1, -1]
    np.testing.assert_allclose(soundfile.read(path)[0], expected, atol=2**-15)


@pytest.mark.parametrize("rate", [16_000, 44_100, 48_000, 192_000])
def test_bext_is_that_of_ebu_tech_3285(tmp_path: Path, rate: int) -> None:
    path = tmp_path / "take.wav"
    write_sound(path, noise(100), RATE, SoundFormat(rate, "24"), TAGS)
    bext = riff.chunks(path)["bext"]
    texts = struct.unpack_from("<256s32s32s10s8s", bext)
    description, originator, reference, date, time = (text.rstrip(b"\0").decode("ascii") for text in texts)
    low, high, version = struct.unpack_from("<IIH", bext, 338)
    assert description == "a stick hits metal"
    assert originator.startswith("Video-Foley ")
    assert len(reference) == 32
    assert (date, time) == ("2026-05-04", "10:20:30")
    assert (high << 32) + low == 3600 * rate
    assert version == 1
    assert bext[348:602] == bytes(254)
    history = bext[602:].rstrip(b"\0").decode("ascii")
    assert history.startswith(f"A=PCM,F={rate},W=24,M=mono,T=Video-Foley ")
    assert history.endswith("\r\n")
    with av.open(str(path)) as container:
        assert container.metadata["time_reference"] == str(3600 * rate)
        assert container.metadata["comment"] == "a stick hits metal"
        assert container.metadata["coding_history"] == history


def test_ixml_has_the_recipe_and_the_rate_of_the_timecode(tmp_path: Path) -> None:
    path = tmp_path / "take.wav"
    write_sound(path, noise(100), RATE, SoundFormat(48_000, "24"), TAGS)
    root = riff.ixml(path)
    assert riff.recipe(path) == {"seed": 7}
    assert root.findtext("NOTE") == "a stick hits metal"
    assert root.findtext("SPEED/TIMECODE_RATE") == "30000/1001"
    assert root.findtext("SPEED/TIMECODE_FLAG") == "DF"
    assert root.findtext("SPEED/TIMESTAMP_SAMPLE_RATE") == root.findtext("SPEED/FILE_SAMPLE_RATE") == "48000"
    assert root.findtext("SPEED/TIMESTAMP_SAMPLES_SINCE_MIDNIGHT_HI") == "0"
    assert root.findtext("SPEED/TIMESTAMP_SAMPLES_SINCE_MIDNIGHT_LO") == str(3600 * 48_000)


def test_flac_has_tags_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "take.flac"
    write_sound(path, noise(100), RATE, SoundFormat(48_000, "24"), TAGS)
    with av.open(str(path)) as container:
        tags = {name.lower(): value for name, value in container.metadata.items()}
    assert json.loads(tags["foley_recipe"]) == {"seed": 7}
    assert tags["time_reference"] == str(3600 * 48_000)
    assert tags["comment"] == "a stick hits metal"  # FFmpeg's name for DESCRIPTION
    assert tags["date"] == "2026-05-04"


@pytest.mark.parametrize("extension", SOUND_EXTENSIONS)
def test_without_a_video_there_is_no_time_and_files_are_reproducible(tmp_path: Path, extension: str) -> None:
    for name in ("a", "b"):
        write_sound(tmp_path / f"{name}{extension}", noise(1000), RATE)
    content = (tmp_path / f"a{extension}").read_bytes()
    assert content == (tmp_path / f"b{extension}").read_bytes()
    if extension == ".wav":
        assert riff.chunks(tmp_path / "a.wav")["bext"][320:346] == bytes(26)  # date, time, time reference


@given(st.text(max_size=400))
@settings(deadline=None, max_examples=50)
def test_any_description_is_written(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.mktemp("any") / "take.wav"
    write_sound(path, noise(10), RATE, tags=SoundTags(f"<&>\0\x1b\ud800{text}", json.dumps({"text": text})))
    assert (riff.ixml(path).findtext("NOTE") or "").startswith("<&>   ")
    assert riff.recipe(path) == {"text": text}
    assert riff.chunks(path)["bext"][:256].isascii()


@pytest.mark.parametrize("bit_depth", ["16", "32f"])
@pytest.mark.parametrize("extra", [0, 1])
def test_from_4_gib_on_wav_is_rf64(tmp_path: Path, bit_depth: BitDepth, extra: int) -> None:
    width = {"16": 2, "32f": 4}[bit_depth]
    small = len(broadcast_wave.header(0, 96_000, bit_depth, TAGS))
    samples = (2**32 - 1 - (small - 8)) // width + extra  # the largest RIFF, or one sample more
    head = broadcast_wave.header(samples, 96_000, bit_depth, TAGS)
    assert head[:4] == (b"RF64" if extra else b"RIFF")
    path = tmp_path / "long.wav"
    with path.open("wb") as file:  # sparse: takes no space on the disk
        file.write(head)
        file.truncate(len(head) + samples * width)
    assert soundfile.info(path).frames == samples
    with av.open(str(path)) as container:
        (stream,) = container.streams.audio
        assert stream.duration == samples
        assert container.metadata["time_reference"] == str(3600 * 96_000)


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    sound = noise(120 * RATE)
    tracemalloc.start()
    write_sound(tmp_path / "take.wav", sound, RATE, SoundFormat(96_000, "32f"))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (tmp_path / "take.wav").stat().st_size > 45e6
    assert peak < 5e6  # the sound has 8 MB, the file 46 MB


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("extension", SOUND_EXTENSIONS)
def test_full_disk_is_an_output_error(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"take{extension}"
    refused = pytest.raises(OutputError, match=rf"take\{extension}.*File too large")
    with refused, largest_file(50_000), replacing(path) as temporary:
        write_sound(temporary, noise(5 * RATE), RATE, SoundFormat(48_000, "24"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "bad",
    [np.array([0, np.nan, 1]), np.array([0, -np.inf, 1]), np.zeros(0), np.zeros((2, 10))],
    ids=["nan", "infinite", "empty", "stereo"],
)
def test_rejects_invalid_sound(tmp_path: Path, bad: np.ndarray) -> None:
    with pytest.raises(OutputError):
        write_sound(tmp_path / "take.wav", bad.astype(np.float32), RATE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["take.xyz", "take", "missing/take.wav", "folder.flac", "take.mp4"])
def test_rejects_invalid_destination(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.flac").mkdir()
    with pytest.raises(OutputError):
        write_sound(tmp_path / name, noise(10), RATE)


def test_flac_has_no_floating_point(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"take\.flac.*use a bit depth of 16 or 24, or \.wav"):
        write_sound(tmp_path / "take.flac", noise(10), RATE, SoundFormat(None, "32f"))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(SettingError, match="bit depth"):
        Row(video="a.mp4", output="a.flac", bit_depth="32f").request(Path("a.mp4"), None)


@pytest.mark.parametrize(
    ("rate", "bit_depth"), [(8_000, "16"), (48_000.0, "16"), (10**6, "16"), (True, "16"), ("48k", "16"), (None, "8")]
)
def test_rejects_invalid_format(rate: int, bit_depth: BitDepth) -> None:
    with pytest.raises(SettingError, match=r"the (sample rate|bit depth) is .*: use "):
        SoundFormat(rate, bit_depth)


# --- the result of a generation


@needs_media
@pytest.mark.parametrize("extension", SOUND_EXTENSIONS)
@pytest.mark.parametrize("as_bytes", [False, True], ids=["path", "bytes"])
def test_variations_line_up_with_their_video(tmp_path: Path, extension: str, as_bytes: bool) -> None:
    video = REAL_WORLD / "tmcd.mov"
    takes = [Take(noise(RATE), {"seed": seed, "text": "steel"}) for seed in (3, 4)]
    result = GenerationResult(np.zeros(100, np.float32), takes, {}, video.read_bytes() if as_bytes else video)
    found = []
    for i in range(2):
        path = tmp_path / f"take-{i + 1}{extension}"
        result.save(path, variation=i, sound=SoundFormat(48_000, "24"))
        with av.open(str(path)) as container:
            found.append((container.metadata["time_reference"], container.metadata["comment"]))
    at = str(3723 * 48_000 + 4 * 48_000 // 30)  # 01:02:03:04 at 30 fps
    assert found == [(at, "steel (Video-Foley, seed 3)"), (at, "steel (Video-Foley, seed 4)")]


@pytest.mark.parametrize("video", [None, Path("removed.mp4")])
def test_result_without_video_is_saved_from_midnight(tmp_path: Path, video: Path | None) -> None:
    result = GenerationResult(np.zeros(100, np.float32), [Take(noise(RATE), {"seed": 1})], {}, video)
    result.save(tmp_path / "take.wav")
    assert riff.recipe(tmp_path / "take.wav") == {"seed": 1}
    assert soundfile.info(tmp_path / "take.wav").samplerate == RATE
    with pytest.raises(SettingError, match="bit depth of 16 or 24"):
        result.save(tmp_path / "take.flac", sound=SoundFormat(48_000, "32f"))
    assert not (tmp_path / "take.flac").exists()
