"""Encodes video again, where the output format cannot hold the source's codec.

The colours, the shape of the pixels, the time of each frame and, where the format has it, transparency are those of the
source. The frames are upright: not all formats and players support a display matrix.
"""

import os
from collections.abc import Iterator
from fractions import Fraction
from itertools import chain
from typing import Any

import av
from av.container import OutputContainer
from av.filter import Graph
from av.video.reformatter import ColorRange, Colorspace

from foley import hdr
from foley.media import Frames
from foley.output_format import OutputFormat
from foley.track_copy import aspect_of

_CLOCK_HZ = 120_000  # 1 / time base of encoded frames; a multiple of the usual frame rates, 24000/1001 among them
_HDR_TRANSFERS = frozenset({16, 18})  # AVColorTransferCharacteristic: PQ (SMPTE 2084) and HLG (ARIB STD-B67)
_UNSPECIFIED = 2  # of AVColorSpace, AVColorPrimaries and AVColorTransferCharacteristic
_RGB, _BT709 = 0, 1
_OPTIONS = {
    "libx264": {"crf": "18"},
    "libx265": {"crf": "18", "x265-params": "log-level=error"},
    "libvpx-vp9": {"crf": "30", "b": "0", "cpu-used": "4", "row-mt": "1"},
    "libsvtav1": {"crf": "25", "preset": "8"},
    "prores_ks": {"profile": "4444", "vendor": "apl0"},
}


class EncodedVideo:
    """A video stream that is encoded again while its packets are read.

    Args:
        output: The output, without a header yet.
        kind: The format of the output.
        video: The source.
        source: The source's video stream.
        shift_s: Seconds by which the output starts earlier than the source.

    Attributes:
        stream: The stream in the output.
        aspect: The stream's sample aspect ratio; None: unknown.
        changes: What differs from the source besides the codec, as words for a message.
    """

    def __init__(self, output: OutputContainer, kind: OutputFormat, video: Frames, source: Any, shift_s: float) -> None:
        self._shift_s = shift_s - video.info.start_s
        frames = video.source_frames()
        first = next(frames)
        self._frames = chain([first], frames)
        picture, info = first[0], video.info
        has_alpha = _has_alpha(picture, info.codec)
        colours = _colours(picture, source.codec_context)
        is_hdr = colours[2] in _HDR_TRANSFERS
        name, pixels = kind.video_encoder, "yuv420p"
        if has_alpha and kind.alpha_encoder:
            name, pixels = kind.alpha_encoder
        elif is_hdr:
            name, pixels = kind.hdr_encoder, "yuv420p10le"
        self.changes = ["without transparency"] if has_alpha and not kind.alpha_encoder else []
        if _bits(picture.format) > _bits(av.VideoFormat(pixels)):
            self.changes.append(f"with {_bits(av.VideoFormat(pixels))} bits per colour")

        interlaced = bool(picture.interlaced_frame)
        keeps_fields = interlaced and name == "libx264" and not info.orientation.transposed
        if interlaced and not keeps_fields:
            self.changes.append("deinterlaced")
        self._steps = [("bwdif", "mode=send_frame:deint=interlaced")] if interlaced and not keeps_fields else []
        self._steps += info.orientation.filters
        if name == "libsvtav1":
            os.environ.setdefault("SVT_LOG", "1")  # else it writes its settings to standard error
        options = (
            _OPTIONS[name] | hdr.encoder_options(picture, name) | ({"flags": "+ildct+ilme"} if keeps_fields else {})
        )

        stream: Any = output.add_stream(name, rate=_frame_rate(video), options=options)
        # 4:2:0 requires even sizes: an odd row or column is cut off, or stretched if it is the only one.
        stream.width, stream.height = max(2, info.width // 2 * 2), max(2, info.height // 2 * 2)
        if (stream.width, stream.height) != (info.width, info.height):
            self.changes.append(f"{stream.width} x {stream.height} in place of {info.width} x {info.height}")
            width, height = min(stream.width, info.width), min(stream.height, info.height)
            self._steps.append(("crop", f"min({width},iw):min({height},ih):0:0"))
        stream.pix_fmt = pixels
        stream.codec_context.time_base = Fraction(1, _CLOCK_HZ)
        self.aspect = aspect_of(source)
        if self.aspect:
            self.aspect = 1 / self.aspect if info.orientation.transposed else self.aspect
            stream.codec_context.sample_aspect_ratio = self.aspect
        stream.codec_context.color_range = ColorRange.MPEG
        self._is_rgb = picture.format.is_rgb
        context = stream.codec_context
        context.colorspace, context.color_primaries, context.color_trc = colours
        if name == "libx265":
            stream.codec_context.codec_tag = "hvc1" if kind.is_quicktime else "\0\0\0\0"
        if has_alpha and name == "libvpx-vp9":
            stream.metadata["alpha_mode"] = "1"
        self.stream = stream

    def packets(self) -> Iterator[Any]:
        """Decode and encode the video.

        Yields:
            The packets of the stream.

        Raises:
            MediaError: The source is damaged.
        """
        durations: dict[int, int] = {}  # by PTS; encoders return those of the mean frame rate
        for frame in chain(self._upright(), [None]):
            if frame is not None:
                durations[frame.pts] = frame.duration
            for packet in self.stream.encode(frame and self._converted(frame)):
                packet.duration = durations.pop(packet.pts, packet.duration)
                yield packet

    def _upright(self) -> Iterator[Any]:
        graph, graph_of = Graph(), None
        for frame, from_s, until_s in self._frames:
            if from_s == until_s:
                continue  # never shown, and encoders refuse duplicate PTS
            frame.time_base = Fraction(1, _CLOCK_HZ)
            frame.pts = round((from_s - self._shift_s) * _CLOCK_HZ)
            frame.duration = round((until_s - from_s) * _CLOCK_HZ)
            if not self._steps:
                yield frame
                continue
            geometry = frame.width, frame.height, frame.format.name
            if geometry != graph_of:  # the size or format changed
                yield from _flushed(graph)
                graph, graph_of = _graph(frame, self._steps), geometry
            graph.vpush(frame)
            yield from _ready(graph)
        yield from _flushed(graph)

    def _converted(self, frame: Any) -> Any:
        """Convert a frame to the encoder's pixel format, in the colour space of the source."""
        width, height = self.stream.width, self.stream.height
        converted = frame.reformat(
            width,
            height,
            self.stream.pix_fmt,
            dst_colorspace=Colorspace.ITU709 if self._is_rgb else None,
            src_color_range=None if self._is_rgb else (frame.color_range or ColorRange.MPEG),
            dst_color_range=ColorRange.MPEG,
        )
        converted.pts, converted.time_base, converted.duration = frame.pts, frame.time_base, frame.duration
        converted.pict_type = 0  # else the encoder repeats the source's choice of keyframes
        return converted


def _has_alpha(frame: Any, codec: str) -> bool:
    """Whether a video has transparency. The decoder of GIF always returns an alpha channel, often an opaque one."""
    has_channel = any(component.is_alpha for component in frame.format.components)
    return has_channel and (codec != "gif" or bool((frame.to_ndarray(format="rgba")[..., 3] < 255).any()))


def _bits(pixels: av.VideoFormat) -> int:
    return max(component.bits for component in pixels.components)


def _colours(frame: Any, context: Any) -> tuple[int, int, int]:
    """Return the colour space, primaries and transfer: those of a frame, else those of its container."""
    if frame.format.is_rgb or frame.colorspace == _RGB:  # grey pictures of PNG
        return _BT709, _BT709, _BT709
    names = ("colorspace", "color_primaries", "color_trc")
    values = (int(getattr(frame, name)) for name in names)
    space, primaries, transfer = (
        int(getattr(context, name)) if value == _UNSPECIFIED else value
        for name, value in zip(names, values, strict=True)
    )
    return (_UNSPECIFIED if space == _RGB else space), primaries, transfer  # PNG says RGB of grey pictures


def _frame_rate(video: Frames) -> Fraction:
    return Fraction(video.info.fps).limit_denominator(1001)


def _graph(frame: Any, steps: list[tuple[str, str]]) -> Graph:
    graph = Graph()
    nodes = [
        graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base),
        *(graph.add(name, arguments) for name, arguments in steps),
        graph.add("buffersink"),
    ]
    graph.link_nodes(*nodes).configure()
    return graph


def _flushed(graph: Graph) -> Iterator[Any]:
    if graph.configured:
        graph.vpush(None)
        yield from _ready(graph)


def _ready(graph: Graph) -> Iterator[Any]:
    while True:
        try:
            yield graph.vpull()
        except (av.BlockingIOError, av.EOFError):
            return
