"""Formats of input files: each that people bring is read exactly, and what cannot be read is named."""

import gzip
import io
import shutil
import sys
import zipfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from foley import formats
from foley.audio import read_audio
from foley.errors import MediaError
from foley.media import Limits, probe, read_frames
from harness.media_files import MEDIA, needs_media
from harness.video_formats import FRAMES, PAL, VIDEOS, level, write_video

SOUNDS = {  # name: (muxer, encoder, sample rate)
    "a.ac3": ("ac3", "ac3", 48_000),
    "a.eac3": ("eac3", "eac3", 48_000),
    "a.wv": ("wv", "wavpack", 16_000),
    "a.tta": ("tta", "tta", 16_000),
    "a.caf": ("caf", "pcm_s16be", 16_000),
    "a.w64": ("w64", "pcm_s16le", 16_000),
    "a.au": ("au", "pcm_s16be", 16_000),
    "a.mp2": ("mp2", "mp2", 48_000),
    "a.oga": ("ogg", "flac", 16_000),
    "a.amr": ("amr", "libopencore_amrnb", 8_000),
    "a.latm": ("latm", "aac", 16_000),
    "a.voc": ("voc", "pcm_s16le", 16_000),
    "a.mka": ("matroska", "flac", 16_000),
    "a.sox": ("sox", "pcm_s32le", 16_000),
}


@pytest.mark.parametrize("name", VIDEOS)
def test_video_of_each_format_is_read_exactly(tmp_path: Path, name: str) -> None:
    muxer, encoder, pixels, size, rate = VIDEOS[name]
    frames = read_frames(write_video(tmp_path / name, muxer, encoder, pixels, size, rate))
    info = frames.info
    assert (info.width, info.height, info.source_frames) == (*size, FRAMES)
    assert info.duration_s == pytest.approx(float(FRAMES / rate), abs=1e-6)
    assert info.fps == pytest.approx(float(rate), abs=1e-3)
    shown = [float(image.mean()) for image in frames]
    assert len(shown) == round(30 * FRAMES / rate)
    expected = [level(int(Fraction(number, 30) * rate)) for number in range(len(shown))]
    furthest = 6 if name == "a.vob" else 3  # two frames differ by 5; FFmpeg's time stamps of MPEG-PS can be one off
    assert np.abs(np.subtract(shown, expected)).max() <= furthest


@pytest.mark.parametrize("name", ["a.h264", "a.apng", "pal.dv"])
def test_format_is_recognised_without_its_extension(tmp_path: Path, name: str) -> None:
    written = write_video(tmp_path / name, *VIDEOS[name])
    assert probe(written.rename(tmp_path / "upload")).source_frames == FRAMES


@pytest.mark.parametrize("name", SOUNDS)
def test_sound_of_each_format_is_read(tmp_path: Path, name: str) -> None:
    muxer, encoder, rate = SOUNDS[name]
    tone = (0.5 * np.sin(2 * np.pi * 440 * np.arange(2 * rate) / rate)).astype(np.float32)
    with av.open(str(tmp_path / name), "w", format=muxer) as output:
        stream = output.add_stream(encoder, rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(tone[None], format="fltp", layout="mono")
        frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), 0
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    sound = read_audio(tmp_path / name)
    assert 31_900 <= len(sound) <= 32_000 + 3 * 1024
    spectrum = np.abs(np.fft.rfft(sound[4000:28_000]))
    assert spectrum.argmax() * 16_000 / 24_000 == pytest.approx(440, abs=1)
    tolerance = 0.2 if name == "a.amr" else 0.06  # AMR reproduces speech
    assert np.sqrt(np.mean(sound[4000:28_000] ** 2)) == pytest.approx(0.5 / np.sqrt(2), rel=tolerance)


def test_mxf_with_sound(tmp_path: Path) -> None:
    path = tmp_path / "camera.mxf"
    with av.open(str(path), "w") as output:
        picture = output.add_stream("libx264", rate=25)
        picture.width, picture.height, picture.pix_fmt = 64, 48, "yuv420p"
        sound = output.add_stream("pcm_s16le", rate=48_000, layout="mono")
        for number in range(FRAMES):
            frame = av.VideoFrame(64, 48, "yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            block = av.AudioFrame.from_ndarray(np.full((1, 1920), 8192, np.int16), format="s16", layout="mono")
            block.sample_rate, block.time_base, block.pts = 48_000, Fraction(1, 48_000), 1920 * number
            output.mux([*picture.encode(frame), *sound.encode(block)])
        output.mux([*picture.encode(None), *sound.encode(None)])
    info = probe(path)
    assert (info.duration_s, info.has_audio) == (1.6, True)
    samples = read_audio(path)
    assert len(samples) == 25_600
    assert np.allclose(samples[100:-100], 0.25, atol=1e-3)


# --- what cannot be read


def _zip() -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a.mp4", b"video")
    return archive.getvalue()


def _image(format: str) -> bytes:
    encoder, pixels = {"jpg": ("mjpeg", "yuvj420p"), "png": ("png", "gray"), "tiff": ("tiff", "gray")}[format]
    image = av.VideoFrame.from_ndarray(np.zeros((48, 64), np.uint8), format="gray").reformat(format=pixels)
    codec = av.CodecContext.create(encoder, "w")
    codec.width, codec.height, codec.pix_fmt, codec.time_base = 64, 48, pixels, Fraction(1, 25)
    return b"".join(bytes(packet) for one in (image, None) for packet in codec.encode(one))


# name: (content, part of the sentence)
OTHERS = {
    "a JPEG image": (_image("jpg"), "has only one frame|a JPEG image"),
    "a PNG image": (_image("png"), "a PNG image"),
    "a TIFF image": (_image("tiff"), "a TIFF image or a camera's raw image"),
    "a still WebP": (b"RIFF\x24\0\0\0WEBPVP8 \x18\0\0\0" + bytes(24), "a WebP image"),
    "an HEIC image": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100), "an HEIC image"),
    "Canon RAW": (b"\0\0\0\x18ftypcrx \0\0\0\x01crx isom" + bytes(100), "Canon RAW, .*export it as MOV or MP4"),
    "REDCODE": (b"\0\0\x01\0RED2" + bytes(100), "REDCODE RAW"),
    "a PDF": (b"%PDF-1.7\n\xff\xff", "a PDF document"),
    "a ZIP": (_zip(), "a ZIP archive, .*extract"),
    "gzip": (gzip.compress(b"video"), "a gzip archive"),
    "a web page": (b"\n<!DOCTYPE HTML>\n<title>Sign in</title>", "a web page, .*needs a login"),
    "a pointer of Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "run `git lfs pull`"),
    "a playlist": (b"\xef\xbb\xbf#EXTM3U\nhttp://127.0.0.1:9/a.ts\n", "a playlist"),
    "a DASH manifest": (b'<?xml version="1.0"?><MPD/>', "an XML file"),
    "text": ("Größe und Länge\n".encode() * 500, "a text file"),
    "macOS metadata": (b"\0\x05\x16\x07\0\x02\0\0Mac OS X" + bytes(100), "macOS metadata"),
    "MIDI": (b"MThd\0\0\0\x06\0\x01\0\x01\0`", "render it to WAV"),
    "zeros": (bytes(100_000), "contains only zeros"),
    "noise": (np.random.default_rng(0).bytes(10_000), "not a video or audio file of a known format"),
    "a damaged MXF": (bytes.fromhex("060e2b34020501010d0102010102040000000000") + bytes(500), "is damaged"),
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("extension", [".mp4", ".h264", ".m3u8"])
def test_other_file_is_named(tmp_path: Path, name: str, extension: str) -> None:
    content, sentence = OTHERS[name]
    path = tmp_path / f"a{extension}"
    path.write_bytes(content)
    with pytest.raises(MediaError, match=sentence) as error:
        probe(path)
    assert "\n" not in str(error.value)


@needs_media
def test_animated_webp_is_named() -> None:
    with pytest.raises(MediaError, match="an animated WebP, which cannot be decoded; convert it to GIF, APNG or MP4"):
        probe(MEDIA / "real_world" / "anim.webp")


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [("zzzz", "a video codec, 'zzzz', that cannot be decoded"), ("brxq", "is Blackmagic RAW")],
)
def test_unknown_codec_is_named(tmp_path: Path, entry: str, sentence: str) -> None:
    path = write_video(tmp_path / "a.mov", "mov", "libx264", "yuv420p", (64, 48), PAL)
    path.write_bytes(path.read_bytes().replace(b"avc1", entry.encode()))
    with pytest.raises(MediaError, match=sentence):
        probe(path)


def test_encrypted_video_is_named(tmp_path: Path) -> None:
    path, key = tmp_path / "a.mp4", "00112233445566778899aabbccddeeff"
    options = {"encryption_scheme": "cenc-aes-ctr", "encryption_key": key, "encryption_kid": key}
    with av.open(str(path), "w", options=options) as output:
        stream = output.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        output.mux([*stream.encode(av.VideoFrame(64, 48, "yuv420p")), *stream.encode(None)])
    for read in (probe, read_audio):
        with pytest.raises(MediaError, match=r"encrypted \(DRM\)"):
            read(path)


@pytest.mark.parametrize("size", range(0, 200, 7))
def test_damaged_boxes_end(size: int) -> None:
    """Sizes of boxes that are forged or cut neither raise an error nor loop."""
    random = np.random.default_rng(size)
    for _ in range(50):
        moov = b"".join(
            int(random.integers(0, 20)).to_bytes(4, "big") + name for name in (b"moov", b"trak", b"mdia", b"stsd")
        )
        assert isinstance(formats.sample_entries(io.BytesIO((moov * 4)[:size])), set)


# --- demuxers


def test_demuxers_open_no_other_file() -> None:
    """Those that open files, URLs or devices are known by name, in FFmpeg's sources (`io_open`, AVFMT_NOFILE)."""
    allowed = set(formats.DEMUXERS.split(","))
    for name in allowed:
        av.format.ContainerFormat(name, "r")  # it exists
    opening = "hls dash concat concatf imf image2 image2pipe sdp rtsp rtp sap webm_dash_manifest vobsub mlv sbg lavfi"
    assert not allowed & {*opening.split(), "alsa", "fbdev", "kmsgrab", "oss", "video4linux2", "v4l2", "x11grab"}
    assert not any(name.endswith("_pipe") for name in allowed)


@pytest.mark.skipif(sys.platform != "linux", reason="the extension selects no demuxer either")
@pytest.mark.parametrize("extension", [".m3u8", ".ffconcat", ".txt", ".mxf", ".sdp", ".mpd", ".jpg", ".%03d.png"])
def test_extension_selects_no_other_demuxer(tmp_path: Path, extension: str) -> None:
    video = write_video(tmp_path / "a.mkv", "matroska", "libx264", "yuv420p", (64, 48), PAL)
    shutil.copy(video, tmp_path / f"b{extension}")
    assert probe(tmp_path / f"b{extension}").source_frames == FRAMES
    (tmp_path / f"c{extension}").write_text("ffconcat version 1.0\nfile 'a.mkv'\n")
    with pytest.raises(MediaError, match="a playlist"):
        probe(tmp_path / f"c{extension}", Limits())
