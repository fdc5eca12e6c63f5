"""Timecodes are counted as SMPTE does, and read from the files of cameras and editors."""

from collections.abc import Iterator
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foley.timecode import Recorded, Timecode, parse_timecode, read_recorded
from harness.media_files import REAL_WORLD, needs_media

NTSC = Fraction(30_000, 1001)


def labels(base: int, skipped: int) -> Iterator[str]:
    """Yield the labels of all frames of a day in order: a clock that skips numbers when a minute begins."""
    for minute in range(24 * 60):
        for second in range(60):
            for frame in range(skipped if second == 0 and minute % 10 else 0, base):
                colon = ";" if skipped else ":"
                yield f"{minute // 60:02}:{minute % 60:02}:{second:02}{colon}{frame:02}"


@pytest.mark.parametrize(
    ("rate", "skipped"),
    [(24, 0), (25, 0), (NTSC, 0), (NTSC, 2), (2 * NTSC, 4), (29.97, 2), (59.94, 4)],
    ids=["24", "25", "29.97", "29.97-drop", "59.94-drop", "29.97-drop-float", "59.94-drop-float"],
)
def test_number_is_that_of_counting(rate: Fraction | float, skipped: int) -> None:
    for count, label in enumerate(islice(labels(round(rate), skipped), 40_000)):
        parsed = parse_timecode(label, Fraction(rate))
        assert parsed is not None, label
        assert parsed.frames == count, label


def test_drop_frame_keeps_up_with_the_clock() -> None:
    last = parse_timecode("23:59:59;29", NTSC)
    assert last == Timecode(2_589_407, NTSC, True)
    assert float(last.seconds + 1 / NTSC) == pytest.approx(86_400, abs=0.09)
    hour = parse_timecode("01:00:00:00", NTSC)
    assert hour is not None
    assert hour.seconds == Fraction(36_036, 10)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1:2:3:4",
        "24:00:00:00",
        "00:60:00:00",
        "00:00:60:00",
        "00:00:00:30",
        "00:00:00",
        "00:00:00:00\0",
        "٠٠:00:00:00",
    ],
    ids=["empty", "short", "hour", "minute", "second", "frame", "no-frame", "nul", "arabic"],
)
def test_what_is_no_timecode_is_none(text: str) -> None:
    assert parse_timecode(text, NTSC) is None
    assert parse_timecode("00:00:00:00", Fraction(0)) is None


@given(st.text(), st.fractions(0, 10**6))
def test_any_text_is_parsed_or_refused(text: str, rate: Fraction) -> None:
    parse_timecode(text, rate)


@needs_media
def test_real_files() -> None:
    assert read_recorded(REAL_WORLD / "tmcd.mov").timecode == Timecode(((1 * 60 + 2) * 60 + 3) * 30 + 4, Fraction(30))
    assert read_recorded(REAL_WORLD / "tmcd.mov").start_s == 3723 + Fraction(4, 30)
    assert read_recorded(REAL_WORLD / "tags.mp4") == Recorded(date="2024-05-06", time="07:08:09")
    assert read_recorded(REAL_WORLD / "hvc1.mp4") == Recorded()


def write_video(path: Path, rate: Fraction, tags: dict[str, str], late_frames: int = 0, sound: bool = False) -> Path:
    """Write 12 frames that start `late_frames` late; with `sound`, a sound track that does not."""
    with av.open(str(path), "w") as output:
        output.metadata.update(tags)
        stream = output.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        track = output.add_stream("aac", rate=48_000) if sound else None
        for i in range(12):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 20 * i, np.uint8), "rgb24")
            frame.pts, frame.time_base = i + late_frames, 1 / rate
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
        if track:
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 48_000), np.float32), "fltp", "mono")
            silence.sample_rate, silence.pts, silence.time_base = 48_000, 0, Fraction(1, 48_000)
            output.mux([*track.encode(silence), *track.encode(None)])
    return path


@pytest.mark.parametrize(
    ("rate", "text", "seconds"),
    [
        (Fraction(25), "10:00:00:05", 36_000 + Fraction(5, 25)),
        (NTSC, "00:01:00;02", 1800 / NTSC),
        (2 * NTSC, "00:01:00;04", 3600 / (2 * NTSC)),
        (NTSC, "01:00:00:00", Fraction(36_036, 10)),
        (Fraction(24_000, 1001), "00:00:10:12", 252 * Fraction(1001, 24_000)),
    ],
    ids=["25", "29.97-drop", "59.94-drop", "29.97", "23.976"],
)
@pytest.mark.parametrize("extension", [".mov", ".mp4", ".mkv"])
def test_time_is_exact(tmp_path: Path, rate: Fraction, text: str, seconds: Fraction, extension: str) -> None:
    video = write_video(tmp_path / f"video{extension}", rate, {"timecode": text})
    assert read_recorded(video).start_s == seconds


def test_timecode_that_counts_every_other_frame(tmp_path: Path) -> None:
    """Cameras that record 60 fps with a timecode of 30 fps."""
    video = write_video(tmp_path / "video.mov", Fraction(60), {"timecode": "00:00:10:20"})
    content = bytearray(video.read_bytes())
    entry = content.rindex(b"tmcd")  # of the sample description
    assert (content[entry + 26], content[entry + 28]) == (1, 60)  # duration of a frame, frames a second
    content[entry + 26], content[entry + 28] = 2, 30
    video.write_bytes(content)
    assert read_recorded(video).timecode == Timecode(620, Fraction(30))  # 00:00:20:20


def test_video_that_starts_late_is_later_than_its_timecode(tmp_path: Path) -> None:
    video = write_video(tmp_path / "video.mov", Fraction(25), {"timecode": "01:00:00:00"}, late_frames=5, sound=True)
    assert float(read_recorded(video).start_s) == pytest.approx(3600.2, abs=1e-3)


@pytest.mark.parametrize("bad", ["99:99:99:99", "now", "00:00:00:77"])
def test_invalid_metadata_is_ignored(tmp_path: Path, bad: str) -> None:
    video = write_video(tmp_path / "video.mkv", Fraction(25), {"timecode": bad, "creation_time": "yesterday"})
    assert read_recorded(video) == Recorded()


def test_time_after_midnight_starts_again(tmp_path: Path) -> None:
    video = write_video(tmp_path / "video.mkv", NTSC, {"timecode": "23:59:59:29"})
    assert read_recorded(video).start_s == Fraction(24 * 3600 * 1001, 1000) - 1 / NTSC - 86_400
