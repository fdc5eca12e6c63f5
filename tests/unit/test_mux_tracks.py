"""Unusual tracks of the source: gaps, changes, damage, surround, late subtitles, negative times; and the sync."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from foley.container import NO_LIMITS, Limits
from foley.errors import MediaTooLarge
from foley.matroska import set_aspect
from foley.media import probe
from foley.mux import Muxed, write_video
from harness.source_video import HEIGHT, PQ, RATE, WIDTH, Source, Track, picture

PLAIN = Source(".mkv")


def video_packets(stream: Any, frames: int = RATE, first: int = 0) -> list[Any]:
    packets: list[Any] = []
    for index in range(frames):
        frame = av.VideoFrame.from_ndarray(picture(index % RATE), "rgb24").reformat(format=stream.pix_fmt)
        frame.pts, frame.time_base, frame.duration = first + index, Fraction(1, RATE), 1
        packets += stream.encode(frame)
    return [*packets, *stream.encode(None)]


def add_video(output: Any, codec: str = "libx264", rate: int = RATE) -> Any:
    stream = output.add_stream(codec, rate=rate)
    stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
    stream.codec_context.time_base = Fraction(1, rate)
    return stream


def sound_packets(stream: Any, samples: np.ndarray, start_s: float = 0.0) -> list[Any]:
    rate = stream.rate
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples.T).reshape(1, -1), "flt", stream.layout.name)
    frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), round(start_s * rate)
    return list(stream.encode(frame))


def write(output: Any, packets: Sequence[Any]) -> None:
    for packet in sorted(packets, key=lambda one: one.dts * one.time_base):
        output.mux(packet)


def noise(channels: int = 1, seconds: float = 1.0) -> np.ndarray:
    values = np.random.default_rng(0).normal(0, 0.1, (channels, round(48_000 * seconds) + 23))
    return np.stack([np.convolve(row, np.ones(24) / 8, "valid") for row in values]).astype(np.float32)


def deliver(source: Path, target: Path, mode: str = "keep", sound: np.ndarray | None = None, **options: Any) -> Muxed:
    sound = np.zeros(16_000, np.float32) if sound is None else sound
    return write_video(source, sound, 16_000, target, mode, "{}", **options)  # type: ignore[arg-type]


def decoded(path: Path, index: int) -> tuple[np.ndarray, float]:
    """Return the first channel of a sound track at 48 kHz, and the time of its first sample."""
    with av.open(str(path)) as file:
        frames = list(file.decode(audio=index))
        channels = len(frames[0].layout.channels)
        resampler = av.AudioResampler("flt", None, 48_000)
        blocks = [block.to_ndarray() for frame in [*frames, None] for block in resampler.resample(frame)]
        return np.concatenate([block.reshape(-1, channels)[:, 0] for block in blocks]), float(frames[0].time)


# --- sound that changes


@pytest.mark.parametrize(("mode", "extension", "track"), [("mix", ".mkv", 0), ("keep", ".webm", 1)])
def test_gap_of_sound_stays_a_gap(tmp_path: Path, mode: str, extension: str, track: int) -> None:
    source, burst = tmp_path / "gap.mkv", noise(2)
    with av.open(str(source), "w") as output:
        video, audio = add_video(output), output.add_stream("pcm_s16le", rate=48_000, layout="stereo")
        packets = [*sound_packets(audio, burst), *sound_packets(audio, burst, 2.0), *audio.encode(None)]
        write(output, [*video_packets(video, 75), *packets])
    deliver(source, tmp_path / f"a{extension}", mode, np.zeros(48_000, np.float32))
    heard, start_s = decoded(tmp_path / f"a{extension}", track)
    loud = np.flatnonzero(np.abs(heard) > 0.02) / 48_000 + start_s
    assert loud[(loud > 1.05) & (loud < 1.95)].size == 0
    assert loud.max() == pytest.approx(3.0, abs=0.02)
    assert loud[loud > 1.5].min() == pytest.approx(2.0, abs=0.02)


def frames_of(codec: str, layout: str) -> list[bytes]:
    encoder: Any = av.CodecContext.create(codec, "w")
    encoder.sample_rate, encoder.layout, encoder.format = 48_000, layout, "fltp"
    encoder.open()
    channels = len(encoder.layout.channels)
    packets: list[bytes] = []
    for index in range(20):
        tone = 0.1 * np.sin(np.arange(1536 * index, 1536 * (index + 1)) * 0.1).astype(np.float32)
        frame = av.AudioFrame.from_ndarray(np.tile(tone, (channels, 1)), "fltp", layout)
        frame.sample_rate, frame.pts, frame.time_base = 48_000, 1536 * index, Fraction(1, 48_000)
        packets += [bytes(packet) for packet in encoder.encode(frame)]
    return packets


@pytest.mark.parametrize(("mode", "extension"), [("mix", ".mp4"), ("mix", ".mkv"), ("keep", ".webm")])
def test_broadcast_changes_from_stereo_to_surround(tmp_path: Path, mode: str, extension: str) -> None:
    source = tmp_path / "broadcast.ts"
    with av.open(str(source), "w") as output:
        video, audio = add_video(output), output.add_stream("ac3", rate=48_000, layout="stereo")
        audio.codec_context.open(strict=False)
        packets = []
        for number, data in enumerate([*frames_of("ac3", "stereo"), *frames_of("ac3", "5.1(side)")]):
            packet = av.Packet(data)
            packet.pts = packet.dts = 2880 * number
            packet.time_base, packet.stream = Fraction(1, 90_000), audio
            packets.append(packet)
        write(output, [*video_packets(video, 30), *packets])
    deliver(source, tmp_path / f"a{extension}", mode, np.zeros(19_200, np.float32))
    heard, _ = decoded(tmp_path / f"a{extension}", 0 if mode == "mix" else 1)
    assert np.abs(heard[50_000:55_000]).mean() > 0.03


@pytest.mark.parametrize(("mode", "extension"), [("mix", ".mkv"), ("mix", ".mp4"), ("keep", ".webm")])
def test_eight_channels(tmp_path: Path, mode: str, extension: str) -> None:
    source = tmp_path / "7.1.mov"
    with av.open(str(source), "w") as output:
        video, audio = add_video(output), output.add_stream("pcm_s16le", rate=48_000, layout="7.1")
        write(output, [*video_packets(video), *sound_packets(audio, noise(8)), *audio.encode(None)])
    deliver(source, tmp_path / f"a{extension}", mode)
    with av.open(str(tmp_path / f"a{extension}")) as file:
        assert [len(one.layout.channels) for one in file.streams.audio] == ([8] if mode == "mix" else [1, 8])
    heard, _ = decoded(tmp_path / f"a{extension}", 0 if mode == "mix" else 1)
    expected = noise(8)[0, 1_000:40_000]
    assert np.corrcoef(heard[1_000:40_000], expected)[0, 1] > 0.95


# --- sound that cannot be used


def test_unusable_tracks_are_left_out_with_a_reason(tmp_path: Path) -> None:
    empty, unknown = tmp_path / "empty.mkv", tmp_path / "unknown.mov"
    with av.open(str(empty), "w") as output:
        video, _ = add_video(output), output.add_stream("ac3", rate=48_000, layout="stereo")
        write(output, video_packets(video))
    source = Source(".mov", tracks=(Track("pcm_s16le"),)).write(tmp_path)
    unknown.write_bytes(source.read_bytes().replace(b"sowt", b"zzzz"))
    for name, reason in ((empty, "it is empty"), (unknown, "its codec cannot be decoded")):
        for mode, what in (("mix", "is not mixed in"), ("keep", "is left out")):
            (note,) = deliver(name, tmp_path / "a.webm", mode).notes[1:]
            assert note.startswith("the sound track")
            assert note.endswith(f"{what}: {reason}")
            with av.open(str(tmp_path / "a.webm")) as file:
                assert len(file.streams.audio) == 1


def test_damaged_track_ends_at_its_damage(tmp_path: Path) -> None:
    source = Source(".mkv", tracks=(Track("flac"),)).write(tmp_path)
    data = bytearray(source.read_bytes())
    position = data.rindex(b"\xff\xf8")  # the last frame of FLAC, whose checksum fails then
    data[position + 20 : position + 40] = bytes(20)
    source.write_bytes(data)
    notes = deliver(source, tmp_path / "a.mp4").notes
    deliver(source, tmp_path / "a.webm")
    damage = [note for note in deliver(source, tmp_path / "a.webm").notes if "is damaged, so it ends at" in note]
    assert len(damage) == 1
    assert not any("damaged" in note for note in notes)  # copied


def test_limits_apply_to_sound_that_is_decoded(tmp_path: Path) -> None:
    source = Source(".mkv", tracks=(Track("flac"),)).write(tmp_path)
    for mode in ("mix", "keep"):
        with pytest.raises(MediaTooLarge, match="samples"):
            deliver(source, tmp_path / "a.webm", mode, limits=Limits(samples=50_000))


# --- subtitles and chapters


def test_subtitles_keep_their_times(tmp_path: Path) -> None:
    """A late one overflows MP4 with a fine time base; simultaneous ones need no rising time stamps."""
    decoder: Any = av.CodecContext.create("subrip", "r")
    decoder.open()
    source, texts = tmp_path / "late.mkv", [(700, f"line {i}") for i in range(50)] + [(2_400_000, "late")]
    with av.open(str(source), "w") as output:
        video, subtitles = add_video(output, rate=1), output.add_stream("ass")
        subtitles.codec_context.subtitle_header = decoder.subtitle_header
        subtitles.codec_context.open(strict=False)
        packets = []
        for number, (start, text) in enumerate(texts):
            packet = av.Packet(f"{number},0,Default,,0,0,0,,{text}".encode())
            packet.pts = packet.dts = start
            packet.duration, packet.time_base, packet.stream = 200, Fraction(1, 1000), subtitles
            packets.append(packet)
        frames = []
        for index in range(2_405):
            frame = av.VideoFrame(WIDTH, HEIGHT, "yuv420p")
            frame.pts, frame.time_base = index, Fraction(1, 1)
            frames += video.encode(frame)
        write(output, [*frames, *video.encode(None), *packets])

    def times(path: Path) -> list[float]:
        with av.open(str(path)) as file:
            shown = [float(one.pts * one.time_base) for one in file.demux(subtitles=0) if one.size > 2]
        return [round(time, 3) for time in shown]

    deliver(source, tmp_path / "a.mkv", limits=NO_LIMITS)
    assert times(tmp_path / "a.mkv") == [0.7] * 50 + [2_400.0]
    notes = deliver(source, tmp_path / "a.mp4", limits=NO_LIMITS).notes
    assert times(tmp_path / "a.mp4")[-1] == 2_400.0
    assert "the styles of the subtitle track are lost: .mp4 holds plain text" in notes


@pytest.mark.parametrize("extension", [".mp4", ".mkv"])
def test_chapters_that_start_late(tmp_path: Path, extension: str) -> None:
    source = Source(".mkv", chapters=True).write(tmp_path)
    with av.open(str(source)) as file, av.open(str(tmp_path / "late.mkv"), "w") as output:
        copy = output.add_stream_from_template(file.streams.video[0], opaque=True)
        output.set_chapters([{**one, "start": one["start"] + 10**8} for one in file.chapters()])
        for packet in file.demux():
            if packet.size:
                packet.stream = copy
                output.mux(packet)
    deliver(tmp_path / "late.mkv", tmp_path / f"a{extension}")
    with av.open(str(tmp_path / f"a{extension}")) as file:
        starts = {one["metadata"].get("title"): float(one["start"] * one["time_base"]) for one in file.chapters()}
    assert {"One": 0.1, "Two": 0.5, "Three": 0.9}.items() <= starts.items()


# --- times


@pytest.mark.parametrize("extension", [".mp4", ".mkv"])
def test_recording_whose_clock_wraps_is_whole(tmp_path: Path, extension: str) -> None:
    source, seconds = tmp_path / "wrap.ts", 95_442  # 2^33 ticks of 90 kHz are 95,443.7 s
    with av.open(str(source), "w") as output:
        video, audio = add_video(output), output.add_stream("aac", rate=48_000, layout="mono")
        packets = [*sound_packets(audio, noise(1, 3.0), seconds), *audio.encode(None)]
        write(output, [*video_packets(video, 75, seconds * RATE), *packets])
    deliver(source, tmp_path / f"a{extension}", sound=np.zeros(48_000, np.float32))
    info = probe(tmp_path / f"a{extension}")
    assert (info.source_frames, info.duration_s) == (75, pytest.approx(3.0, abs=2e-3))


@pytest.mark.parametrize("target", [".mp4", ".mov", ".mkv", ".webm"])
@pytest.mark.parametrize(("picture_s", "sound_s"), [(0.0, 0.5), (0.48, 0.0), (10.0, 9.6)])
def test_tracks_are_in_sync(tmp_path: Path, target: str, picture_s: float, sound_s: float) -> None:
    """Against the first frame, the new sound and the source's are where they were, within 0.5 ms."""
    source, own = tmp_path / "source.mkv", noise(1, 2.0)
    with av.open(str(source), "w") as output:
        video, audio = add_video(output), output.add_stream("flac", rate=48_000, layout="mono")
        packets = [*sound_packets(audio, own, sound_s), *audio.encode(None)]
        write(output, [*video_packets(video, 50, round(picture_s * RATE)), *packets])
    new = np.interp(np.arange(32_000) / 16_000, np.arange(96_000) / 48_000, own[0]).astype(np.float32)
    deliver(source, tmp_path / f"a{target}", "keep", new)
    first_s = probe(tmp_path / f"a{target}").start_s
    for index, (expected, start_s) in enumerate([(np.repeat(new, 3), 0.0), (own[0], sound_s - picture_s)]):
        heard, heard_s = decoded(tmp_path / f"a{target}", index)
        size = 1 << 18
        correlation = np.fft.irfft(np.fft.rfft(heard, size) * np.conj(np.fft.rfft(expected, size)), size)
        shift = (int(np.argmax(correlation)) + size // 2) % size - size // 2
        moved_ms = 1000 * (heard_s - first_s - start_s + shift / 48_000)
        assert abs(moved_ms) <= 0.55, (index, moved_ms)  # with half a sample at 16 kHz


def test_last_frame_that_is_held_is_held_when_encoded_again(tmp_path: Path) -> None:
    source = tmp_path / "held.gif"
    with av.open(str(source), "w") as output:
        stream = output.add_stream("gif", rate=10, width=WIDTH, height=HEIGHT, pix_fmt="rgb8")
        for index in range(10):
            frame = av.VideoFrame.from_ndarray(picture(index), "rgb24").reformat(format="rgb8")
            frame.pts, frame.time_base, frame.duration = index, Fraction(1, 10), 30 if index == 9 else 1
            for packet in stream.encode(frame):
                packet.duration = frame.duration
                output.mux(packet)
    assert probe(source).duration_s > 3
    for extension in (".mp4", ".mkv", ".webm"):
        deliver(source, tmp_path / f"a{extension}")
        assert probe(tmp_path / f"a{extension}").duration_s == pytest.approx(probe(source).duration_s, abs=0.01)


# --- pictures


def test_size_that_shrinks(tmp_path: Path) -> None:
    source = tmp_path / "shrinks.mkv"
    with av.open(str(source), "w") as output:
        stream = output.add_stream("mjpeg", rate=25, width=65, height=49, pix_fmt="yuvj420p")
        for number in range(10):
            width, height = (65, 49) if number < 5 else (33, 25)
            encoder: Any = av.CodecContext.create("mjpeg", "w")
            encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = (
                width,
                height,
                "yuvj420p",
                Fraction(1, 25),
            )
            image = np.full((height, width, 3), 20 * number, np.uint8)
            (packet,) = encoder.encode(av.VideoFrame.from_ndarray(image, "rgb24").reformat(format="yuvj420p"))
            packet.pts = packet.dts = number
            packet.time_base, packet.stream = Fraction(1, 25), stream
            output.mux(packet)
    deliver(source, tmp_path / "a.webm", sound=np.zeros(6_400, np.float32))
    assert probe(tmp_path / "a.webm").source_frames == 10


@pytest.mark.parametrize("extension", [".webm", ".mkv"])
def test_hdr10_metadata_is_kept(tmp_path: Path, extension: str) -> None:
    display = "G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,50)"
    options = {"x265-params": f"log-level=error:hdr10=1:repeat-headers=1:master-display={display}:max-cll=1000,400"}
    source = Source(".mkv", "libx265", "yuv420p10le", options=options, colours=PQ).write(tmp_path)

    def metadata(path: Path) -> tuple[np.ndarray, bytes]:
        with av.open(str(path)) as file:
            data = next(file.decode(video=0)).side_data
        numbers = np.frombuffer(bytes(data["MASTERING_DISPLAY_METADATA"])[:80], "=i4").reshape(-1, 2)
        return numbers[:, 0] / numbers[:, 1], bytes(data["CONTENT_LIGHT_LEVEL"])

    deliver(source, tmp_path / f"a{extension}")
    (after, light), (before, expected_light) = metadata(tmp_path / f"a{extension}"), metadata(source)
    assert np.allclose(after, before, rtol=2e-3, atol=1e-4)
    assert light == expected_light


def test_title_of_any_length_in_matroska(tmp_path: Path) -> None:
    """Around the length at which the head of the file ends within the header of an element."""
    path = Source(".mkv", tags={"title": "x" * 1_048_000}).write(tmp_path)
    data = path.read_bytes()
    for length in range(1_048_150, 1_048_400, 9):
        with av.open(str(path)) as file, av.open(str(tmp_path / "a.mkv"), "w") as output:
            copy = output.add_stream_from_template(file.streams.video[0], opaque=True)
            output.metadata["title"] = "x" * length
            for packet in file.demux():
                if packet.size:
                    packet.stream = copy
                    output.mux(packet)
        set_aspect(tmp_path / "a.mkv", Fraction(4, 3))
        assert probe(tmp_path / "a.mkv").source_frames == RATE
    assert path.read_bytes() == data
