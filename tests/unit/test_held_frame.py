"""The end of a video: a last frame that is held is shown to its end, and a file that is cut off is refused."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from foley.errors import MediaError
from foley.media import read_frames

CENTISECOND = Fraction(1, 100)


def write_video(path: Path, shown: list[int], encoder: str, start: int = 0) -> Path:
    """Write grey frames, frame i with the brightness 10 i, each shown for `shown[i]` centiseconds."""
    options = {"final_delay": f"{shown[-1]}/100"} if encoder == "apng" else {}
    with av.open(str(path), "w", options=options) as output:
        stream = output.add_stream(encoder, rate=100 // shown[0])
        stream.width, stream.height = 64, 48
        stream.pix_fmt = "gray" if encoder in ("gif", "apng") else "yuv420p"
        stream.codec_context.time_base, stream.bit_rate = CENTISECOND, 4_000_000
        packets, stamp = [], start
        for number, duration in enumerate(shown):
            grey = np.full((48, 64), 10 * number, np.uint8)
            frame = av.VideoFrame.from_ndarray(grey, format="gray").reformat(format=stream.pix_fmt)
            frame.pts, frame.time_base, frame.duration = stamp, CENTISECOND, duration
            stamp += duration
            packets += stream.encode(frame)
        packets += stream.encode(None)
        last = max(packets, key=lambda packet: packet.pts)
        last.duration = round(shown[-1] * CENTISECOND / last.time_base)
        output.mux(packets)
    return path


# MP4 and MOV without B-frames: they store the distance of frames in decoding order
FORMATS = [("a.gif", "gif"), ("a.mp4", "mpeg4"), ("a.mov", "mpeg4"), ("a.mkv", "libx264"), ("a.webm", "libvpx")]
LENGTHS = {
    "the last is held": [10] * 10 + [500],
    "varying": [10, 50, 30, 200, 10, 10, 120],
    "the first is held": [300] + [10] * 9,
    "two": [10, 900],
}


@pytest.mark.parametrize(("name", "encoder"), FORMATS, ids=[name for name, _ in FORMATS])
@pytest.mark.parametrize("shown", LENGTHS.values(), ids=LENGTHS.keys())
def test_held_frames_are_shown_to_their_end(tmp_path: Path, name: str, encoder: str, shown: list[int]) -> None:
    frames = read_frames(write_video(tmp_path / name, shown, encoder))
    assert frames.info.duration_s == pytest.approx(sum(shown) / 100, abs=1e-6)
    ends = np.cumsum(shown) / 100
    expected = [10 * int(np.searchsorted(ends, number / 30 + 1e-9, side="right")) for number in range(len(frames))]
    assert np.allclose([image.mean() for image in frames], expected, atol=4)
    assert len(list(frames)) == round(30 * sum(shown) / 100)


def test_held_frame_of_apng(tmp_path: Path) -> None:
    assert read_frames(write_video(tmp_path / "a.apng", [10] * 10 + [500], "apng")).info.duration_s == 6.0


def without_block_groups(mkv: bytes) -> bytes:
    """Remove the duration of the last block, as muxers before 2022 wrote it: rename BlockDuration to Void."""
    position = mkv.rindex(b"\x9b\x82")  # BlockDuration, two bytes
    return mkv[:position] + b"\xec\x82" + mkv[position + 2 :]


def test_matroska_without_duration_of_last_block(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", [10] * 10 + [500], "libx264")
    path.write_bytes(without_block_groups(path.read_bytes()))
    assert read_frames(path).info.duration_s == pytest.approx(6.0, abs=1e-6)
    path.write_bytes(path.read_bytes()[:-50])  # now it could also be cut off
    with pytest.raises(MediaError, match="damaged"):
        list(read_frames(path))


def test_matroska_that_starts_late(tmp_path: Path) -> None:
    frames = read_frames(write_video(tmp_path / "a.mkv", [10] * 10, "libx264", start=500))
    assert (frames.info.start_s, frames.info.duration_s) == (5.0, 1.0)
    assert len(list(frames)) == 30


@pytest.mark.parametrize(("name", "encoder"), FORMATS[1:], ids=[name for name, _ in FORMATS[1:]])
@pytest.mark.parametrize("share", [0.5, 0.8])
def test_video_that_is_cut_off_is_damaged(tmp_path: Path, name: str, encoder: str, share: float) -> None:
    path = write_video(tmp_path / name, [10] * 25, encoder)
    path.write_bytes(path.read_bytes()[: round(share * path.stat().st_size)])
    with pytest.raises(MediaError, match="damaged"):
        list(read_frames(path))
