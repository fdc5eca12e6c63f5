"""Delivered files for sources as people have them, and for those that FFmpeg's libraries do not describe."""

import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foley.errors import MediaError
from foley.languages import canonical
from foley.matroska import set_aspect
from foley.media import probe, read_frames
from foley.mp4_tags import ExtraTags
from foley.mux import write_video
from foley.orientation import orientation_of
from harness.media_files import MEDIA, REAL_WORLD, needs_media
from harness.source_video import BT709, FRAMES, RATE, Source, Track, tone
from harness.video_formats import VIDEOS
from harness.video_formats import write_video as make_video

ALL = (".mp4", ".mov", ".mkv", ".webm")


def deliver(source: Path, target: Path, mode: str = "keep", sound: np.ndarray | None = None) -> tuple[str, ...]:
    sound = np.zeros(8_000, np.float32) if sound is None else sound
    return write_video(source, sound, 16_000, target, mode, "{}").notes  # type: ignore[arg-type]


def streams(path: Path) -> list[tuple[str, str, str | None, str | None]]:
    """Return (type, codec, language, title) of each stream."""
    with av.open(str(path)) as file:
        return [
            (s.type, s.codec_context.codec.canonical_name, s.language, s.metadata.get("title", s.metadata.get("name")))
            for s in file.streams
            if s.codec_context
        ]


def first_frame(path: Path) -> Any:
    with av.open(str(path)) as file:
        return next(file.decode(video=0))


def samples(path: Path, index: int) -> tuple[np.ndarray, int]:
    with av.open(str(path)) as file:
        frames = list(file.decode(audio=index))
        resampler = av.AudioResampler("fltp")
        return np.concatenate([b.to_ndarray() for f in frames for b in resampler.resample(f)], 1), frames[0].sample_rate


# --- files as people have them


@needs_media
@pytest.mark.parametrize("extension", [".mp4", ".mkv", ".webm"])
def test_av1_is_copied(tmp_path: Path, extension: str) -> None:
    assert deliver(REAL_WORLD / "av1.mp4", tmp_path / f"a{extension}") == ()
    assert streams(tmp_path / f"a{extension}")[0][1] == "av1"


@needs_media
@pytest.mark.parametrize("extension", [".mp4", ".mov"])
def test_hevc_keeps_its_tag(tmp_path: Path, extension: str) -> None:
    """QuickTime and Final Cut refuse hev1; Matroska has no tag, so hvc1 is chosen."""
    deliver(REAL_WORLD / "hvc1.mp4", tmp_path / "a.mkv")
    for source in (REAL_WORLD / "hvc1.mp4", tmp_path / "a.mkv"):
        deliver(source, tmp_path / f"a{extension}")
        with av.open(str(tmp_path / f"a{extension}")) as file:
            assert file.streams.video[0].codec_context.codec_tag == "hvc1"


@needs_media
@pytest.mark.parametrize("extension", ALL)
def test_tags_are_kept(tmp_path: Path, extension: str) -> None:
    deliver(REAL_WORLD / "tags.mp4", tmp_path / f"a{extension}")
    with av.open(str(tmp_path / f"a{extension}")) as file:
        tags = {name.lower(): value for name, value in file.metadata.items()}
    assert tags["creation_time"] == "2024-05-06T07:08:09.000000Z"
    assert (tags["title"], tags["artist"], tags["comment"]) == ("My Take 3", "Jane", "shot on set")
    assert tags["location"] == "+48.1000-011.5000/"
    assert tags["foley_recipe"] == "{}"
    languages = [language and canonical(language) for _, _, language, _ in streams(tmp_path / f"a{extension}")]
    assert (languages[0], languages[2]) == ("deu", "fra")


@needs_media
@pytest.mark.parametrize("extension", ALL)
def test_chapters_subtitles_and_tracks_are_kept(tmp_path: Path, extension: str) -> None:
    target = tmp_path / f"a{extension}"
    deliver(REAL_WORLD / "full.mkv", target)
    with av.open(str(target)) as file:
        assert [one["metadata"]["title"] for one in file.chapters()] == ["One", "Two"]
    _, new, first, second, subtitle = streams(target)
    assert (new[0], first[2], second[2:]) == ("audio", "eng", ("jpn", "Commentary"))
    assert subtitle[0] == "subtitle"


@needs_media
@pytest.mark.parametrize("extension", ALL)
def test_timecode_is_kept(tmp_path: Path, extension: str) -> None:
    deliver(REAL_WORLD / "tmcd.mov", tmp_path / f"a{extension}")
    with av.open(str(tmp_path / f"a{extension}")) as file:
        assert {k.lower(): v for k, v in file.streams.video[0].metadata.items()}["timecode"] == "01:02:03:04"
        assert any(stream.type == "data" for stream in file.streams) == (extension in (".mp4", ".mov"))


@needs_media
@pytest.mark.parametrize("extension", ALL)
def test_trimmed_clip_stays_trimmed(tmp_path: Path, extension: str) -> None:
    source, target = REAL_WORLD / "trimmed.mp4", tmp_path / f"a{extension}"
    notes = deliver(source, target)
    assert probe(target).duration_s == pytest.approx(2.7, abs=0.01)
    assert np.allclose(upright(target), upright(source), atol=12)
    assert ("edit list" in " ".join(notes)) == (extension == ".mkv")
    assert samples(target, 1)[0].shape[1] / samples(target, 1)[1] == pytest.approx(2.7, abs=0.06)


def upright(path: Path) -> np.ndarray:
    """Return the first frame that is shown, as it is shown, without the fine detail that encoding changes."""
    with av.open(str(path)) as file:
        frame = next(frame for frame in file.decode(video=0) if frame.pts >= 0)
    image = orientation_of(frame).upright(frame.to_ndarray(format="rgb24"))
    height, width = image.shape[0] // 16 * 16, image.shape[1] // 16 * 16
    return image[:height, :width].reshape(height // 16, 16, width // 16, 16, 3).mean((1, 3))


@needs_media
@pytest.mark.parametrize("extension", ALL)
def test_pixels_keep_their_shape(tmp_path: Path, extension: str) -> None:
    deliver(REAL_WORLD / "sar.avi", tmp_path / f"a{extension}")
    with av.open(str(tmp_path / f"a{extension}")) as file:
        assert file.streams.video[0].sample_aspect_ratio == Fraction(64, 45)


@needs_media
def test_bt709_stays_bt709(tmp_path: Path) -> None:
    source = REAL_WORLD / "red709.mov"
    (note,) = deliver(source, tmp_path / "a.mp4")
    assert note == "the picture is encoded again as H.264, with 8 bits per colour: .mp4 does not hold ProRes"
    before, after = first_frame(source), first_frame(tmp_path / "a.mp4")
    assert (after.colorspace, after.color_primaries, after.color_trc) == (1, 1, 1)
    scaled = before.reformat(format="yuv420p").to_ndarray().astype(int)  # the same matrix: luma and chroma are equal
    assert np.abs(scaled - after.to_ndarray()).max() <= 3


@needs_media
@pytest.mark.parametrize("extension", [".webm", ".mkv"])
def test_vp9_keeps_transparency(tmp_path: Path, extension: str) -> None:
    def alpha(path: Path) -> np.ndarray:
        with av.open(str(path)) as file:
            decoder = av.CodecContext.create("libvpx-vp9", "r")
            frame = next(frame for packet in file.demux(video=0) for frame in decoder.decode(packet))
        return frame.to_ndarray(format="rgba")[..., 3]

    deliver(REAL_WORLD / "vp9a.webm", tmp_path / f"a{extension}")
    assert (alpha(tmp_path / f"a{extension}") == alpha(REAL_WORLD / "vp9a.webm")).all()
    assert alpha(REAL_WORLD / "vp9a.webm").min() < 255
    with av.open(str(tmp_path / f"a{extension}")) as file:
        assert file.streams.video[0].metadata["ALPHA_MODE"] == "1"
    assert "transparency" in " ".join(deliver(REAL_WORLD / "vp9a.webm", tmp_path / "a.mp4"))


@needs_media
@pytest.mark.parametrize("extension", ALL)
def test_mirrored_picture_stays_mirrored(tmp_path: Path, extension: str) -> None:
    source = REAL_WORLD / "hflip.mp4"
    deliver(source, tmp_path / f"a{extension}")
    assert np.allclose(upright(tmp_path / f"a{extension}"), upright(source), atol=6)
    stored = first_frame(source).to_ndarray(format="rgb24")
    assert (orientation_of(first_frame(source)).upright(stored) == stored[:, ::-1]).all()


@needs_media
def test_packets_without_time_stamps_are_a_damaged_file(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="damaged"):
        deliver(MEDIA / "bit_flips.mkv", tmp_path / "a.mkv")


# --- all formats


@pytest.mark.parametrize("extension", [".mov", ".webm"])
@pytest.mark.parametrize("name", VIDEOS)
def test_every_format_is_delivered(tmp_path: Path, name: str, extension: str) -> None:
    source, target = make_video(tmp_path / name, *VIDEOS[name]), tmp_path / f"a{extension}"
    deliver(source, target)
    before, after = read_frames(source), read_frames(target)
    lost = 1 if name == "a.vob" else 0  # FFmpeg's time stamps of MPEG-PS can be equal
    assert after.info.source_frames == before.info.source_frames - lost
    assert after.info.duration_s == pytest.approx(before.info.duration_s, abs=1e-3)
    shown, expected = (np.array([image.mean() for image in frames]) for frames in (after, before))
    assert np.abs(shown - expected).max() < 8  # with times in ms, the frame before or after, which differs by 5


# --- edit lists


def set_edits(path: Path, edits: list[tuple[int, int]]) -> None:
    """Write the edit list of the first track: (duration in ms, start in units of the track)."""
    data = path.read_bytes()
    position = data.index(b"elst") - 4
    (count,) = struct.unpack(">I", data[position + 12 : position + 16])
    assert count == len(edits)
    entries = b"".join(struct.pack(">IIHH", duration, start, 1, 0) for duration, start in edits)
    path.write_bytes(data[: position + 16] + entries + data[position + 16 + len(entries) :])


@pytest.mark.parametrize("extension", ALL)
@pytest.mark.parametrize("options", [{"bf": "0", "g": "5"}, {"bf": "2", "g": "100"}], ids=["keyframes", "B-frames"])
def test_end_that_is_cut_off_stays_cut_off(tmp_path: Path, options: dict[str, str], extension: str) -> None:
    source = Source(".mp4", options=options).write(tmp_path)
    set_edits(source, [(480, {"0": 0, "2": 1024}[options["bf"]])])  # two frames of delay, in ticks of 1/12800 s
    assert probe(source).source_frames == 12
    deliver(source, tmp_path / f"a{extension}")
    assert probe(tmp_path / f"a{extension}").source_frames == 12
    assert probe(tmp_path / f"a{extension}").duration_s == pytest.approx(0.48, abs=2e-3)


# --- sound


@pytest.mark.parametrize(
    ("extension", "layout"), [(".mkv", "5.1(side)"), (".mov", "5.1"), (".mp4", "5.1"), (".webm", "5.1")]
)
def test_mix_keeps_surround(tmp_path: Path, extension: str, layout: str) -> None:
    tracks = (Track("flac", "eng", "Film", "5.1(side)"), Track("aac", "deu", "Dub"))
    source = Source(".mkv", tracks=tracks).write(tmp_path)
    new = 0.2 * np.sin(np.arange(16_000) * 0.7).astype(np.float32)
    deliver(source, tmp_path / f"a{extension}", "mix", new)
    with av.open(str(tmp_path / f"a{extension}")) as file:
        first, second = file.streams.audio
        assert (first.layout.name, first.rate, first.language) == (layout, 48_000, "eng")
        assert canonical(str(second.language)) == "deu"
    mix, _ = samples(tmp_path / f"a{extension}", 0)
    for channel in range(6):
        added = mix[channel, 5_000:40_000] - tone(channel)[5_000:40_000] if extension == ".mkv" else None
        if added is not None:  # lossless: the sound is in the centre, the other channels are as they were
            assert (np.abs(added).max() > 0.15) == (channel == 2)
            assert channel == 2 or np.abs(added).max() < 1e-3


@pytest.mark.parametrize("codec", ["pcm_s16le", "aac"])
def test_track_that_is_encoded_again_sounds_the_same(tmp_path: Path, codec: str) -> None:
    source = Source(".mov", tracks=(Track(codec),)).write(tmp_path)
    notes = deliver(source, tmp_path / "a.webm")
    assert "is encoded again as Opus" in notes[1]
    heard, rate = samples(tmp_path / "a.webm", 1)
    expected = np.stack([tone(0, rate=rate), tone(1, rate=rate)])[:, 4_000:40_000]
    assert np.abs(heard[:, 4_000:40_000] - expected).max() < 0.03


@pytest.mark.parametrize("rate", [16_000, 48_000])
def test_lossy_bit_rate_fits_the_sound(tmp_path: Path, rate: int) -> None:
    source = Source(".mp4").write(tmp_path)
    noise = np.random.default_rng(0).normal(0, 0.1, 4 * rate).astype(np.float32)
    write_video(source, noise, rate, tmp_path / "a.mp4")
    with av.open(str(tmp_path / "a.mp4")) as file:
        assert file.streams.audio[0].bit_rate == pytest.approx({16_000: 64_000, 48_000: 160_000}[rate], rel=0.1)


# --- pictures that are encoded again


def test_fields_are_kept_or_deinterlaced(tmp_path: Path) -> None:
    options = {"flags": "+ildct+ilme", "profile": "standard"}
    source = Source(".mov", "prores_ks", "yuv422p10le", options=options).write(tmp_path)
    assert first_frame(source).interlaced_frame
    assert "deinterlaced" not in " ".join(deliver(source, tmp_path / "a.mp4"))
    assert first_frame(tmp_path / "a.mp4").interlaced_frame
    assert "deinterlaced" in " ".join(deliver(source, tmp_path / "a.webm"))
    assert probe(tmp_path / "a.webm").source_frames == FRAMES


def test_full_range_becomes_limited_range_of_the_same_colours(tmp_path: Path) -> None:
    source = Source(".mov", "mjpeg", "yuvj420p", options={"qscale": "2"}).write(tmp_path)
    deliver(source, tmp_path / "a.webm")
    assert first_frame(tmp_path / "a.webm").color_range == 1
    assert np.allclose(upright(tmp_path / "a.webm"), upright(source), atol=6)


def test_frame_rate_and_times_are_kept(tmp_path: Path) -> None:
    source = Source(".mov", "prores_ks", "yuv422p10le", colours=BT709).write(tmp_path)
    deliver(source, tmp_path / "a.mp4")
    with av.open(str(tmp_path / "a.mp4")) as file:
        assert file.streams.video[0].average_rate == RATE
        assert [frame.time for frame in file.decode(video=0)] == [
            pytest.approx(i / RATE, abs=1e-4) for i in range(FRAMES)
        ]


# --- what FFmpeg's muxers do not write


@settings(max_examples=25, deadline=None)
@given(st.fractions(min_value=Fraction(1, 8), max_value=8, max_denominator=200), st.sampled_from([".mkv", ".webm"]))
def test_aspect_is_added_to_matroska(
    tmp_path_factory: pytest.TempPathFactory, aspect: Fraction, extension: str
) -> None:
    path = Source(extension, "libvpx-vp9", options={"cpu-used": "8", "deadline": "realtime"}, chapters=True).write(
        tmp_path_factory.mktemp("aspect")
    )

    def content() -> Any:
        with av.open(str(path)) as file:
            packets = [(packet.pts, bytes(packet)) for packet in file.demux() if packet.size]
            return packets, dict(file.metadata), file.chapters(), file.duration

    before, size = content(), path.stat().st_size
    assert set_aspect(path, aspect)
    assert (content(), path.stat().st_size) == (before, size)
    with av.open(str(path)) as file:
        assert file.streams.video[0].sample_aspect_ratio == aspect
        file.seek(800_000)  # the index is intact
        assert next(file.demux(video=0)).pts is not None
    assert set_aspect(path, Fraction(1))  # again, over the elements that are there
    assert content() == before


@given(st.dictionaries(st.text(min_size=1, max_size=20), st.text(max_size=200), max_size=5))
@settings(max_examples=25, deadline=None)
def test_mp4_keeps_tags_of_any_name(tmp_path_factory: pytest.TempPathFactory, tags: dict[str, str]) -> None:
    path = tmp_path_factory.mktemp("tags") / "a.mp4"
    tags = {f"x-{name}": value for name, value in tags.items() if "\0" not in name + value and value}
    try:
        _ = [(name + value).encode() for name, value in tags.items()]
    except UnicodeEncodeError:
        return
    extra = ExtraTags({**tags, "title": "T"})
    with av.open(str(path), "w", container_options={"movflags": "+faststart"}) as output:
        stream = output.add_stream("mpeg4", rate=25, width=16, height=16)
        output.metadata.update(extra.known)
        for packet in [*stream.encode(av.VideoFrame(16, 16, "yuv420p")), *stream.encode(None)]:
            output.mux(packet)
    extra.write(path)
    with av.open(str(path)) as file:
        assert {k: v for k, v in file.metadata.items() if k in tags} == tags
        assert file.metadata["title"] == "T"
        assert "grouping" not in file.metadata
        assert len(list(file.decode(video=0))) == 1


@pytest.mark.parametrize(
    "code", ["eng", "fra", "fre", "deu", "ger", "nld", "swe", "ces", "cze", "zho", "jpn", "por", "ell", "ron"]
)
def test_languages_survive_mov_and_matroska(tmp_path: Path, code: str) -> None:
    source = Source(".mkv", tracks=(Track("aac", code),)).write(tmp_path)
    for extension in (".mov", ".mkv", ".mp4"):
        assert deliver(source, tmp_path / f"a{extension}") == ()
        assert canonical(str(streams(tmp_path / f"a{extension}")[2][2])) == canonical(code)
