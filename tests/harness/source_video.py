"""Small videos with the streams, tags and properties that people's files have, written by FFmpeg through PyAV."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

WIDTH, HEIGHT, FRAMES, RATE = 64, 48, 25, 25
TAGS = {"title": "A title", "artist": "Jane", "comment": "my words", "date": "2024-05-06", "workflow": '{"nodes": [1]}'}
CHAPTERS = (("One", 0), ("Two", 400), ("Three", 800))  # title, start in ms
MDTA = {"movflags": "+use_metadata_tags"}
BT709, HLG, PQ = (1, 1, 1), (9, 9, 18), (9, 9, 16)  # colour space, primaries, transfer
_SUBTITLES = (("Hello", 200, 300), ("Bye", 600, 300))  # text, start, duration in ms


@dataclass(frozen=True)
class Track:
    """A sound track."""

    codec: str = "aac"
    language: str = "eng"
    title: str = "Main"
    layout: str = "stereo"


@dataclass(frozen=True)
class Source:
    """What a video is made of."""

    extension: str
    codec: str = "libx264"
    pixels: str = "yuv420p"
    tracks: Sequence[Track] = ()
    options: Mapping[str, str] = field(default_factory=dict)
    tag: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    chapters: bool = False
    subtitle: str | None = None
    language: str | None = None
    timecode: str | None = None
    aspect: Fraction | None = None
    colours: tuple[int, int, int] | None = None
    matrix: Sequence[int] | None = None
    attachment: bool = False
    alpha: bool = False

    def write(self, folder: Path) -> Path:
        """Write the video, one second long, and return its path."""
        path = folder / f"source{self.extension}"
        options = MDTA if self.extension in (".mp4", ".mov") else {}
        with av.open(str(path), "w", container_options=dict(options)) as output:
            video = self._add_video(output)
            sounds = [self._add_track(output, track) for track in self.tracks]
            subtitles = _add_subtitles(output, self.subtitle) if self.subtitle else None
            if self.attachment:
                output.add_attachment("font.ttf", "application/x-truetype-font", b"\0\1\0\0" * 20)
                output.add_attachment("cover.png", "image/png", png())
            output.metadata.update(self.tags)
            if self.chapters:
                ends = [start for _, start in CHAPTERS[1:]] + [1000]
                output.set_chapters(
                    [
                        {
                            "id": i,
                            "start": start,
                            "end": end,
                            "time_base": Fraction(1, 1000),
                            "metadata": {"title": title},
                        }
                        for i, ((title, start), end) in enumerate(zip(CHAPTERS, ends, strict=True))
                    ]
                )
            packets = [*self._encoded_video(video)]
            for index, sound in enumerate(sounds):
                packets += _encoded_sound(sound, index)
            packets += subtitles() if subtitles else []
            for packet in sorted(packets, key=lambda one: one.dts * one.time_base):
                output.mux(packet)
        return path

    def _add_video(self, output: Any) -> Any:
        stream = output.add_stream(self.codec, rate=RATE, options=dict(self.options))
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, self.pixels
        context = stream.codec_context
        context.time_base = Fraction(1, RATE)
        if self.aspect:
            context.sample_aspect_ratio = self.aspect
        if self.colours:
            context.colorspace, context.color_primaries, context.color_trc = self.colours
            context.color_range = 1
        if self.matrix:
            stream.set_display_matrix(self.matrix)
        if self.tag:
            context.codec_tag = self.tag
        for name in ("timecode", "language"):
            if value := getattr(self, name):
                stream.metadata[name] = value
        return stream

    def _encoded_video(self, stream: Any) -> list[Any]:
        packets: list[Any] = []
        for index in range(FRAMES):
            image = picture(index)
            if self.alpha:
                ramp = np.tile(np.linspace(0, 255, WIDTH).astype(np.uint8), (HEIGHT, 1))
                frame = av.VideoFrame.from_ndarray(np.dstack([image, ramp]), "rgba")
            else:
                frame = av.VideoFrame.from_ndarray(image, "rgb24")
            is_709 = self.colours is not None and self.colours[0] == 1
            frame = frame.reformat(format=self.pixels, dst_colorspace="ITU709" if is_709 else None)
            frame.pts, frame.time_base, frame.duration = index, Fraction(1, RATE), 1
            packets += stream.encode(frame)
        return [*packets, *stream.encode(None)]

    def _add_track(self, output: Any, track: Track) -> Any:
        stream = output.add_stream(track.codec, rate=48_000, layout=track.layout)
        stream.metadata.update({"language": track.language, "title": track.title})
        return stream


def picture(index: int) -> np.ndarray:
    """Return frame `index`: red left, green right, darker below, and a white square that moves. No symmetry."""
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    image[:, : WIDTH // 2, 0] = 230
    image[:, WIDTH // 2 :, 1] = 200
    image[HEIGHT // 2 :] //= 2
    left = 2 * index
    image[4:12, left : left + 8] = 235
    return image


def png() -> bytes:
    """Return a small picture as PNG."""
    encoder: Any = av.CodecContext.create("png", "w")
    encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = WIDTH, HEIGHT, "rgb24", Fraction(1, 25)
    return b"".join(map(bytes, encoder.encode(av.VideoFrame.from_ndarray(picture(0), "rgb24"))))


def tone(channel: int, index: int = 0, rate: int = 48_000, seconds: float = 1.0) -> np.ndarray:
    """Return the sound of a channel of track `index`, float32 [samples]."""
    time_s = np.arange(round(seconds * rate)) / rate
    return (0.1 * np.sin(2 * np.pi * (300 + 100 * channel + 50 * index) * time_s)).astype(np.float32)


def _encoded_sound(stream: Any, index: int) -> list[Any]:
    layout = stream.layout.name
    samples = np.stack([tone(channel, index) for channel in range(len(stream.layout.channels))])
    frame = av.AudioFrame.from_ndarray(samples, "fltp", layout)
    frame.sample_rate, frame.time_base, frame.pts = 48_000, Fraction(1, 48_000), 0
    return [*stream.encode(frame), *stream.encode(None)]


def _add_subtitles(output: Any, codec: str) -> Any:
    decoder = _subtitle_decoder()
    stream = output.add_stream(codec)
    stream.codec_context.subtitle_header = decoder.subtitle_header
    stream.metadata["language"] = "fra"

    def packets() -> list[Any]:
        made = []
        for text, start, duration in _SUBTITLES:
            packet = av.Packet(text.encode())
            packet.pts = packet.dts = start
            packet.duration, packet.time_base = duration, Fraction(1, 1000)
            encoded = stream.codec_context.encode_subtitle(decoder.decode2(packet))
            encoded.pts = encoded.dts = start
            encoded.duration, encoded.time_base, encoded.stream = duration, Fraction(1, 1000), stream
            made.append(encoded)
        return made

    return packets


def _subtitle_decoder() -> Any:
    decoder: Any = av.CodecContext.create("subrip", "r")
    decoder.open()
    return decoder
