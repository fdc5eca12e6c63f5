"""Decoding of media: the files of shared/media, timestamps, rotation, size, sound, and malicious files."""

import ctypes
import hashlib
import os
import resource
import shutil
import struct
import sys
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import torch

from foley.audio import read_audio, read_sound
from foley.errors import MediaError, MediaTooLarge
from foley.media import Limits, VideoInfo, probe, read_frames, resize
from harness.media_files import MEDIA, needs_media
from harness.resampling import resample

GOOD = {  # name: (seconds, frames at 30 fps)
    "fps24_with_audio.mp4": (2.0, 60),
    "fps2997.mp4": (45 * 1001 / 30000, 45),
    "fps60.mkv": (1.5, 45),
    "vfr.mp4": (2.0353125, 61),
    "odd_size_161x121_yuv444.mkv": (1.0, 30),
    "h264_10bit.mp4": (1.0, 30),
    "vp9.webm": (1.0, 30),
    "mjpeg.mov": (20 / 30, 20),
    "animated.gif": (2.0, 60),
    "short_5_frames.mp4": (5 / 30, 5),
}
BAD = {  # name: part of the error message
    "single_frame.mp4": "there is no motion",
    "audio_only.m4a": "no video stream",
    "empty.mp4": "is empty",
    "text_named.mp4": "not a video",
    "truncated.mp4": "is damaged",
    "bit_flips.mkv": "is damaged",
    "decode_bomb_4096x4096.mp4": "4096 x 4096",
    "ffconcat_reads_a_local_file.mp4": "not a video",
    "hls_reads_a_local_file.mp4": "not a video",
}


def make_video(
    path: Path,
    stamps: list[int],
    time_base: Fraction,
    levels: list[int] | None = None,
    codec: str = "ffv1",
    size: tuple[int, int] = (32, 24),
) -> Path:
    """Write grey frames with brightness `levels[i]` (default: i), shown from `stamps[i] * time_base` seconds."""
    width, height = size
    with av.open(str(path), "w") as output:
        stream = output.add_stream(codec, rate=round(1 / (time_base * (stamps[1] - stamps[0]))))
        stream.width, stream.height = width, height
        stream.pix_fmt = "gray" if codec == "ffv1" else "yuv420p"
        stream.codec_context.time_base = time_base
        for i, stamp in enumerate(stamps):
            level = i if levels is None else levels[i]
            frame = av.VideoFrame.from_ndarray(np.full((height, width), level, np.uint8), format="gray")
            frame.pts, frame.time_base = stamp, time_base
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


def level_of(image: np.ndarray) -> int:
    return round(float(image.mean()))


def consume(path: Path, limits: Limits | None = None) -> VideoInfo:
    frames = read_frames(path, limits or Limits())
    for _ in frames:
        pass
    return frames.info


# --- files of shared/media


@needs_media
@pytest.mark.parametrize("name", GOOD)
def test_valid_file_is_read_completely(name: str) -> None:
    path = MEDIA / name
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    frames = read_frames(path)
    images = list(frames)
    seconds, count = GOOD[name]
    assert frames.info.duration_s == pytest.approx(seconds, abs=1e-6)
    assert frames.info.samples(16_000) == round(seconds * 16_000)
    assert len(images) == len(frames) == count
    assert all(image.shape == (256, 344, 3) and image.dtype == np.uint8 for image in images)
    assert images[0].std() > 10, "a picture, not one colour"
    assert np.abs(images[0].astype(int) - images[-1]).mean() > 0.5, "the disc has moved"
    assert hashlib.sha256(path.read_bytes()).hexdigest() == before


@needs_media
@pytest.mark.parametrize("name", BAD)
def test_invalid_file_is_rejected_in_one_sentence(name: str) -> None:
    with pytest.raises(MediaError, match=BAD[name]) as error:
        consume(MEDIA / name)
    message = str(error.value)
    assert "\n" not in message
    assert str(MEDIA) not in message, "the message does not show the folder"


@needs_media
def test_every_media_file_is_tested() -> None:
    assert {path.name for path in MEDIA.iterdir() if path.is_file()} - {"README.md"} == GOOD.keys() | BAD.keys()


class OpenWatch:
    """Detects with inotify whether any library opened a file."""

    IN_OPEN, NONBLOCK = 0x20, os.O_NONBLOCK

    def __init__(self, path: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._queue = libc.inotify_init1(self.NONBLOCK)
        assert self._queue >= 0
        assert libc.inotify_add_watch(self._queue, os.fsencode(path), self.IN_OPEN) >= 0

    def was_opened(self) -> bool:
        try:
            return bool(os.read(self._queue, 4096))
        except BlockingIOError:
            return False
        finally:
            os.close(self._queue)


@needs_media
@pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux's")
@pytest.mark.parametrize("name", ["ffconcat_reads_a_local_file.mp4", "hls_reads_a_local_file.mp4"])
def test_playlist_opens_no_other_file(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    playlist = Path(shutil.copy(MEDIA / name, tmp_path))
    target = Path(shutil.copy(MEDIA / "fps60.mkv", tmp_path))
    monkeypatch.chdir(tmp_path)
    watch = OpenWatch(target)
    for read in (probe, read_frames, read_audio):
        with pytest.raises(MediaError):
            read(playlist)
    assert not watch.was_opened()


@needs_media
@pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux's")
def test_unprotected_ffmpeg_follows_playlist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control for the test above: the playlist is followed without protection, and OpenWatch detects it."""
    playlist = Path(shutil.copy(MEDIA / "ffconcat_reads_a_local_file.mp4", tmp_path))
    target = Path(shutil.copy(MEDIA / "fps60.mkv", tmp_path))
    monkeypatch.chdir(tmp_path)
    watch = OpenWatch(target)
    with playlist.open("rb") as file, av.open(file):
        pass
    assert watch.was_opened()


@needs_media
def test_decode_bomb_is_rejected_cheaply() -> None:
    before_s, before_kib = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(MediaTooLarge):
        consume(MEDIA / "decode_bomb_4096x4096.mp4")
    assert time.process_time() - before_s < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 100 * 1024


# --- invalid paths


def test_rejects_missing_folder_and_pipe(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="cannot read"):
        probe(tmp_path / "missing.mp4")
    with pytest.raises(MediaError, match="is not a file"):
        probe(tmp_path)
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(MediaError, match="is not a file"):  # without waiting for a writer
        probe(tmp_path / "pipe.mp4")


def test_unusual_file_names_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    video = make_video(tmp_path / "video.mkv", list(range(30)), Fraction(1, 30))
    for name in ("http:video.mkv", os.fsdecode(b"\xff\xfe.mkv"), "a\nb %d.mkv"):
        shutil.copy(video, name)
        assert probe(Path(name)).frames == 30


def test_cover_art_is_not_a_video(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "song.mp4"), "w") as output:
        sound = output.add_stream("aac", rate=16_000, layout="mono")
        cover = output.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 32, 32, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        output.mux(cover.encode(av.VideoFrame(32, 32, "yuvj420p")))
        output.mux(cover.encode(None))
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 16_000), np.float32), format="fltp", layout="mono")
        silence.sample_rate, silence.time_base, silence.pts = 16_000, Fraction(1, 16_000), 0
        output.mux(sound.encode(silence))
        output.mux(sound.encode(None))
    with pytest.raises(MediaError, match="no video stream"):
        probe(tmp_path / "song.mp4")
    assert len(read_audio(tmp_path / "song.mp4")) == pytest.approx(16_000, abs=2048)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (Limits(bytes=1000), "bytes"),
        (Limits(duration_s=1.9), "longer than the limit of 1.9 s"),
        (Limits(pixels=32 * 24 - 1), "the limit is 767 pixels"),
        (Limits(frames=59), "more than 59 frames"),
        (Limits(packets=30), "more than 30 packets"),
    ],
)
def test_limits_are_enforced(tmp_path: Path, limits: Limits, message: str) -> None:
    video = make_video(tmp_path / "video.mkv", list(range(60)), Fraction(1, 30))
    assert probe(video).frames == 60
    with pytest.raises(MediaTooLarge, match=message):
        probe(video, limits)


def test_default_limits_allow_4k_in_both_orientations() -> None:
    for width, height in ((3840, 2160), (2160, 3840), (4096, 2160)):
        assert width * height <= Limits().pixels < 4096 * 4096


def test_decoder_rejects_frames_larger_than_header(tmp_path: Path) -> None:
    """If the header understates the size, the limit of the decoder applies."""
    video = make_video(tmp_path / "video.mp4", list(range(30)), Fraction(1, 30), codec="libx264", size=(640, 480))
    with av.open(str(video)) as container:
        container.streams.video[0].codec_context.options = {"max_pixels": str(100 * 100)}
        with pytest.raises(av.FFmpegError):
            next(container.decode(video=0))


@pytest.mark.parametrize("share", [0.2, 0.5])
@pytest.mark.parametrize("extension", [".mkv", ".mp4", ".avi", ".flv"])
def test_truncated_file_is_damaged(tmp_path: Path, extension: str, share: float) -> None:
    levels = [(7 * i) % 256 for i in range(90)]
    codec = "flv1" if extension == ".flv" else "mpeg4"
    whole = make_video(tmp_path / f"whole{extension}", list(range(90)), Fraction(1, 30), levels, codec=codec)
    assert consume(whole).frames == 90
    part = tmp_path / f"part{extension}"
    part.write_bytes(whole.read_bytes()[: int(whole.stat().st_size * share)])
    with pytest.raises(MediaError):
        consume(part)


def test_random_damage_raises_only_media_errors(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    whole = make_video(tmp_path / "whole.mp4", list(range(20)), Fraction(1, 30), codec="libx264").read_bytes()
    outcomes = set()
    for _ in range(60):
        broken = bytearray(whole)
        for position in random.integers(0, len(whole), 8):
            broken[position] ^= 1 << random.integers(8)
        (tmp_path / "broken.mp4").write_bytes(broken)
        try:
            consume(tmp_path / "broken.mp4", Limits(duration_s=10))
            outcomes.add("passed")
        except MediaError:
            outcomes.add("refused")
    assert "refused" in outcomes


# --- time


@pytest.mark.parametrize("extension", [".mkv", ".mp4", ".avi"])
@pytest.mark.parametrize("rate", [Fraction(24), Fraction(25), Fraction(30000, 1001), Fraction(60), Fraction(12)])
def test_frames_match_their_timestamps(tmp_path: Path, rate: Fraction, extension: str) -> None:
    count = round(2 * rate)
    path = make_video(tmp_path / f"video{extension}", list(range(count)), 1 / rate)
    frames = read_frames(path)
    assert frames.info.duration_s == pytest.approx(float(count / rate), abs=1e-6)
    rounding = (
        Fraction(1, 1000) if extension == ".mkv" else 0
    )  # 33.37 ms is stamped 33 ms, before the sample at 33.33 ms
    for k, image in enumerate(frames):
        assert int(Fraction(k, 30) * rate) <= level_of(image) <= int((Fraction(k, 30) + rounding) * rate)


@pytest.mark.parametrize("extension", [".mkv", ".mp4"])
def test_variable_frame_rate_follows_timestamps(tmp_path: Path, extension: str) -> None:
    random = np.random.default_rng(3)
    stamps = np.cumsum(random.integers(10, 130, 40)).tolist()  # milliseconds; the first is not zero
    frames = read_frames(make_video(tmp_path / f"video{extension}", stamps, Fraction(1, 1000)))
    levels = [level_of(image) for image in frames]
    expected = [
        max(i for i, stamp in enumerate(stamps) if stamp - stamps[0] <= k * 1000 / 30 + 0.5) for k in range(len(levels))
    ]
    assert frames.info.start_s == pytest.approx(stamps[0] / 1000, abs=1e-3)
    assert levels == expected


@pytest.mark.parametrize(
    ("name", "codec"),
    [("b.avi", "libx264"), ("b.mp4", "libx264"), ("b.ts", "libx264"), ("b.flv", "libx264"), ("b.webm", "libvpx")],
)
def test_reordered_frames_are_read_in_presentation_order(tmp_path: Path, name: str, codec: str) -> None:
    levels = [20 + 4 * i for i in range(50)]
    path = make_video(tmp_path / name, list(range(50)), Fraction(1, 25), levels, codec=codec, size=(64, 48))
    shown = [float(image.mean()) for image in read_frames(path)]
    assert len(shown) == 60
    assert np.allclose(shown, [levels[k * 25 // 30] for k in range(60)], atol=3)


def test_duration_ignores_longer_sound(tmp_path: Path) -> None:
    path = tmp_path / "video.mkv"
    with av.open(str(path), "w") as output:
        picture = output.add_stream("ffv1", rate=30)
        picture.width, picture.height, picture.pix_fmt = 32, 24, "gray"
        sound = output.add_stream("flac", rate=16_000, layout="mono")
        for i in range(30):
            output.mux(picture.encode(av.VideoFrame.from_ndarray(np.full((24, 32), i, np.uint8), format="gray")))
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 48_000), np.int16), format="s16", layout="mono")
        silence.sample_rate, silence.time_base, silence.pts = 16_000, Fraction(1, 16_000), 0
        output.mux(sound.encode(silence))
        output.mux([*picture.encode(None), *sound.encode(None)])
    info = probe(path)
    assert (info.duration_s, info.frames, info.has_audio) == (1.0, 30, True)
    assert len(read_audio(path)) == 48_000


# --- geometry


@needs_media
@pytest.mark.parametrize(
    ("matrix", "turns", "mirrored"),
    [((0, 1, -1, 0), -1, False), ((-1, 0, 0, -1), 2, False), ((0, -1, 1, 0), 1, False), ((-1, 0, 0, 1), 0, True)],
    ids=["90 degrees clockwise", "180 degrees", "90 degrees counterclockwise", "mirrored"],
)
def test_display_matrix_is_applied(
    tmp_path: Path, matrix: tuple[int, int, int, int], turns: int, mirrored: bool
) -> None:
    path = tmp_path / "turned.mp4"
    path.write_bytes(with_display_matrix((MEDIA / "fps24_with_audio.mp4").read_bytes(), matrix))
    frames = read_frames(path)
    assert (frames.info.width, frames.info.height) == ((120, 160) if turns % 2 else (160, 120))
    with av.open(str(path)) as container:
        stored = next(container.decode(video=0)).to_ndarray(format="rgb24")
    shown = stored[:, ::-1] if mirrored else np.rot90(stored, turns)
    assert np.array_equal(next(iter(frames)), resize(shown))


def with_display_matrix(mp4: bytes, matrix: tuple[int, int, int, int]) -> bytes:
    """Write a, b, c, d of the display matrix into the first track header (version 0) of an MP4 file."""
    a, b, c, d = (value * 65536 for value in matrix)
    position = mp4.index(b"tkhd") + 4 + 40
    return mp4[:position] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + mp4[position + 36 :]


@pytest.mark.parametrize("shape", [(120, 160), (1080, 1920), (121, 161), (1, 2), (3840, 2160), (256, 344)])
def test_resize_matches_torch_interpolate(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    planes = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    expected = torch.nn.functional.interpolate(planes, (256, 344), mode="bilinear", align_corners=False)
    difference = np.abs(resize(image) - expected[0].permute(1, 2, 0).numpy())
    assert difference.max() < 0.6, "half a level of rounding, and float32's own"


def test_reading_holds_one_frame_at_a_time(tmp_path: Path) -> None:
    path = make_video(tmp_path / "long.mkv", list(range(250)), Fraction(1, 30), size=(640, 480))
    iterator = iter(read_frames(path))
    next(iterator)
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in iterator:
        pass
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 40 * 1024  # all frames together are 66 MB


# --- sound


def tone(rate: int, seconds: float = 1.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * 440 * np.arange(round(rate * seconds)) / rate)).astype(np.float32)


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100, 48_000])
def test_read_audio_resamples_and_averages_channels(tmp_path: Path, rate: int) -> None:
    path = tmp_path / "tone.wav"
    soundfile.write(path, np.stack([tone(rate), np.zeros(rate, np.float32)], 1), rate, subtype="FLOAT")
    waveform = read_audio(path)
    assert waveform.dtype == np.float32
    assert waveform.shape == (16_000,)
    assert np.allclose(waveform[200:-200], tone(16_000)[200:-200] / 2, atol=2e-3)


@pytest.mark.parametrize("name", ["t.flac", "t.mp3", "t.ogg", "t.m4a", "t.mkv", "t.aac", "t.aiff"])
def test_read_audio_of_any_container(tmp_path: Path, name: str) -> None:
    codec = {".mp3": "libmp3lame", ".ogg": "libopus", ".m4a": "aac", ".aac": "aac", ".aiff": "pcm_s16be"}
    with av.open(str(tmp_path / name), "w") as output:
        stream = output.add_stream(codec.get(Path(name).suffix, "flac"), rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(tone(16_000, 2.0)[None], format="fltp", layout="mono")
        frame.sample_rate, frame.time_base, frame.pts = 16_000, Fraction(1, 16_000), 0
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    waveform = read_audio(tmp_path / name)
    assert 32_000 <= len(waveform) <= 32_000 + 3 * 1024
    assert np.sqrt(np.mean(waveform[4000:28000] ** 2)) == pytest.approx(0.5 / np.sqrt(2), rel=0.05)


@needs_media
def test_read_audio_of_video_files() -> None:
    assert len(read_audio(MEDIA / "fps24_with_audio.mp4")) == pytest.approx(32_000, abs=1024)
    assert len(read_audio(MEDIA / "audio_only.m4a", rate=48_000)) == pytest.approx(48_000, abs=3 * 1024)
    with pytest.raises(MediaError, match="no audio track"):
        read_audio(MEDIA / "fps2997.mp4")
    for name in ("empty.mp4", "text_named.mp4", "truncated.mp4"):
        with pytest.raises(MediaError):
            read_audio(MEDIA / name)


def test_rejects_unusable_sound(tmp_path: Path) -> None:
    path = tmp_path / "sound.wav"
    soundfile.write(path, np.zeros(0, np.float32), 16_000)
    with pytest.raises(MediaError):
        read_audio(path)
    soundfile.write(path, np.full(16_000, np.nan, np.float32), 16_000, subtype="FLOAT")
    with pytest.raises(MediaError, match="not finite"):
        read_audio(path)
    soundfile.write(path, tone(16_000, 2.0), 16_000)
    with pytest.raises(MediaTooLarge, match="longer than the limit"):
        read_audio(path, Limits(duration_s=1.5))
    with pytest.raises(MediaTooLarge, match="samples"):
        read_audio(path, Limits(samples=20_000))
    path.write_bytes(path.read_bytes()[:30_000])
    with pytest.raises(MediaError, match="damaged"):
        read_audio(path)


def test_forged_sample_rate_does_not_bypass_limits(tmp_path: Path) -> None:
    """100 MB that claim to last one second must not be read completely."""
    path = tmp_path / "forged.wav"
    soundfile.write(path, np.zeros(200_000, np.int16), 16_000)
    wav = bytearray(path.read_bytes())
    for rate in (200_000_000, 10):
        wav[24:28] = struct.pack("<I", rate)
        path.write_bytes(wav)
        with pytest.raises(MediaError):
            read_audio(path)


def test_surround_is_downmixed_to_two_channels(tmp_path: Path) -> None:
    path = tmp_path / "surround.wav"
    soundfile.write(path, np.stack([tone(48_000)] * 6, 1), 48_000)
    assert read_sound(path).samples.shape == (2, 48_000)
    assert read_audio(path).shape == (16_000,)


def test_resample_preserves_duration() -> None:
    for new_rate in (8_000, 22_050, 44_100, 48_000):
        samples = resample(np.stack([tone(16_000)] * 2), 16_000, new_rate)
        assert samples.shape == (2, new_rate)
        assert np.allclose(samples[0, 200:-200], tone(new_rate)[200:-200], atol=2e-3)
