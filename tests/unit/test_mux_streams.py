"""What comes in goes out: streams, tags and properties of a source, compared with PyAV, over formats and codecs."""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.stream import Disposition

from foley.languages import canonical
from foley.mux import Muxed, write_video
from harness.source_video import BT709, CHAPTERS, HLG, PQ, TAGS, Source, Track

TARGETS = (".mp4", ".mov", ".mkv", ".webm")
TURNED = (0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30)
MIRRORED = (-65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
TWO = (Track(), Track("aac", "jpn", "Commentary"))
COMMON: dict[str, Any] = {"tags": TAGS, "chapters": True, "language": "deu", "timecode": "01:02:03:04"}
SOURCES = {
    "h264.mp4": Source(".mp4", tracks=TWO, subtitle="mov_text", aspect=Fraction(4, 3), colours=BT709, **COMMON),
    "turned.mp4": Source(".mp4", tracks=TWO, matrix=TURNED, aspect=Fraction(4, 3), **COMMON),
    "mirrored.mov": Source(".mov", tracks=TWO, matrix=MIRRORED, **COMMON),
    "hevc.mp4": Source(".mp4", "libx265", "yuv420p10le", TWO, {"x265-params": "log-level=error"}, "hvc1", colours=PQ),
    "proxy.mov": Source(
        ".mov", "prores_ks", "yuv422p10le", (Track("pcm_s24le"),), {"profile": "proxy"}, colours=BT709, **COMMON
    ),
    "4444.mov": Source(".mov", "prores_ks", "yuva444p10le", (), {"profile": "4444"}, alpha=True, **COMMON),
    "hlg.mov": Source(".mov", "prores_ks", "yuv422p10le", (), {"profile": "hq"}, colours=HLG),
    "png.mov": Source(".mov", "png", "rgba", TWO, alpha=True),
    "h264.mkv": Source(
        ".mkv",
        tracks=(Track("flac"), Track("ac3", "xho", "Music", "5.1(side)")),
        subtitle="subrip",
        attachment=True,
        **COMMON,
    ),
    "ffv1.mkv": Source(".mkv", "ffv1", "bgra", (Track("pcm_s16le"),), alpha=True, **COMMON),
    "vp9.webm": Source(
        ".webm", "libvpx-vp9", "yuv420p", (Track("libopus"),), subtitle="webvtt", colours=BT709, **COMMON
    ),
    "alpha.webm": Source(".webm", "libvpx-vp9", "yuva420p", (), alpha=True),
    "mpeg4.avi": Source(".avi", "mpeg4", "yuv420p", (Track("libmp3lame"),), aspect=Fraction(64, 45)),
    "bframes.avi": Source(".avi", "mpeg4", "yuv420p", (), {"bf": "2"}, aspect=Fraction(64, 45)),
    "h264.ts": Source(".ts", tracks=(Track(title=""), Track("ac3", "jpn", "")), colours=BT709),
    "mpeg2.mpg": Source(".mpg", "mpeg2video", "yuv420p", (Track("mp2", "", ""),), {"bf": "2"}, aspect=Fraction(16, 15)),
}


@dataclass(frozen=True)
class Description:
    """What is compared of a file."""

    codec: str
    tag: str
    aspect: Fraction
    colours: tuple[int, ...]
    times: list[float]
    tags: Mapping[str, str]
    timecode: str | None
    language: str | None
    chapters: list[tuple[str, float]]
    tracks: list[tuple[str | None, str | None, int]]
    subtitles: list[tuple[str | None, list[tuple[str, float]]]]
    attachments: list[str]


def describe(path: Path) -> Description:
    with av.open(str(path)) as container:
        video: Any = container.streams.video[0]
        context = video.codec_context
        metadata = {name.lower(): value for name, value in video.metadata.items()}
        subtitles = []
        for stream in container.streams.subtitles:
            with av.open(str(path)) as again:
                shown = [
                    (line.dialogue.decode(), round(float(packet.pts * packet.time_base), 2))
                    for packet in again.demux(again.streams[stream.index])
                    if packet.size > 2 and packet.pts is not None
                    for line in again.streams[stream.index].codec_context.decode(packet)
                ]
            if [text for text, _ in shown] != [title for title, _ in CHAPTERS]:  # else the text track of the chapters
                subtitles.append((stream.language and canonical(stream.language), shown))
        described = Description(
            context.codec.canonical_name,
            context.codec_tag,
            video.sample_aspect_ratio or Fraction(1),
            (context.colorspace, context.color_primaries, context.color_trc),
            [],
            {name.lower(): value for name, value in container.metadata.items()},
            metadata.get("timecode"),
            _language(video),
            [(one["metadata"]["title"], float(one["start"] * one["time_base"])) for one in container.chapters()],
            [
                (_language(one), one.metadata.get("title", one.metadata.get("name")), len(one.layout.channels))
                for one in container.streams.audio
            ],
            subtitles,
            sorted(one.metadata["filename"] for one in container.streams if "filename" in one.metadata),
        )
        described.times.extend(float(frame.time) for frame in container.decode(video) if frame.time is not None)
        return described


def _language(stream: Any) -> str | None:
    language = stream.metadata.get("language")
    return None if language in (None, "und") else canonical(language)


def displayed(path: Path, alpha: bool) -> np.ndarray:
    """Return the tenth frame as a player shows it, from the definition of the display matrix."""
    with av.open(str(path)) as container:
        stream: Any = container.streams.video[0]
        has_vp9_alpha = {k.lower(): v for k, v in stream.metadata.items()}.get("alpha_mode") == "1"
        decoder = av.CodecContext.create("libvpx-vp9", "r") if has_vp9_alpha else stream.codec_context
        frames = [
            frame for packet in container.demux(stream) for frame in decoder.decode(packet if packet.size else None)
        ]
    frame = frames[10]
    image = frame.to_ndarray(format="rgba" if alpha else "rgb24")
    matrix = frame.side_data.get("DISPLAYMATRIX")
    a, b, _, c, d = np.frombuffer(bytes(matrix), "=i4")[:5] / 65536 if matrix else (1, 0, 0, 0, 1)
    rows, columns = np.mgrid[: image.shape[0], : image.shape[1]]
    x, y = (a * columns + c * rows).astype(int), (b * columns + d * rows).astype(int)
    x, y = x - x.min(), y - y.min()
    shown = np.zeros((y.max() + 1, x.max() + 1, image.shape[2]), np.uint8)
    shown[y, x] = image
    return shown


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    return {name: source.write(tmp_path_factory.mktemp("source")) for name, source in SOURCES.items()}


def deliver(source: Path, target: Path, mode: str = "keep") -> Muxed:
    sound = (0.2 * np.sin(np.arange(16_000) * 0.2)).astype(np.float32)
    return write_video(source, sound, 16_000, target, mode, '{"seed": 7}')  # type: ignore[arg-type]


def cases() -> list[tuple[str, str]]:
    return [(name, target) for name in SOURCES for target in TARGETS]


@pytest.mark.parametrize(("name", "extension"), cases())
def test_everything_is_kept_or_named(sources: Mapping[str, Path], tmp_path: Path, name: str, extension: str) -> None:
    source, spec, target = sources[name], SOURCES[name], tmp_path / f"result{extension}"
    muxed = deliver(source, target)
    before, after = describe(source), describe(target)
    notes = "; ".join(muxed.notes)

    # the picture
    assert muxed.video_copied or "the picture is encoded again" in notes
    assert after.codec == (before.codec if muxed.video_copied else muxed.video_codec)
    if muxed.video_copied:
        assert decoded(target) == decoded(source)
    turned = spec.matrix == TURNED and not muxed.video_copied
    assert after.aspect == (1 / before.aspect if turned else before.aspect)
    expected = BT709 if spec.pixels in ("rgba", "bgra") and not muxed.video_copied else before.colours
    assert after.colours == expected
    are_quicktime = {source.suffix, extension} <= {".mp4", ".mov"}
    assert not (muxed.video_copied and are_quicktime) or after.tag == before.tag
    assert np.allclose(np.diff(after.times), np.diff(before.times), atol=1.1e-3)
    has_alpha = spec.alpha and extension != ".mp4" and "transparency" not in notes
    assert not spec.alpha or has_alpha or "transparency" in notes
    difference = np.abs(displayed(source, has_alpha).astype(int) - displayed(target, has_alpha))
    assert difference.mean() < 8

    # tags
    for tag, value in spec.tags.items():
        assert after.tags[tag] == value
    assert after.tags["foley_recipe"] == '{"seed": 7}'
    assert after.timecode == before.timecode
    assert after.language == before.language
    assert after.chapters == ([(title, start / 1000) for title, start in CHAPTERS] if before.chapters else [])

    # tracks
    new, *kept = after.tracks
    assert new == (None, "Foley" if kept else None, 1)
    for (language, title, channels), (kept_language, kept_title, kept_channels) in zip(
        before.tracks, kept, strict=True
    ):
        assert (kept_title or None, kept_channels) == (title or None, channels)
        assert kept_language == language or f"language ({language})" in notes
    assert after.subtitles == before.subtitles
    for attachment in before.attachments:
        is_cover = attachment.startswith("cover")
        is_kept = attachment in after.attachments or (is_cover and has_cover(target))
        assert is_kept or ("the cover is left out" if is_cover else attachment) in notes
    assert before.attachments == after.attachments or extension != ".mkv"


def decoded(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgba").tobytes() for frame in container.decode(video=0)]


def has_cover(path: Path) -> bool:
    with av.open(str(path)) as container:
        return any(stream.disposition & Disposition.attached_pic for stream in container.streams)
