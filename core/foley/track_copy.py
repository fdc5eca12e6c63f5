"""Copies streams into another container without encoding them again."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import av
from av.container import InputContainer, OutputContainer

from foley.container import MediaFile, open_media
from foley.hidden_packets import Hidden
from foley.languages import canonical, quicktime
from foley.output_format import OutputFormat

_PRORES_TAGS = {0: "apco", 1: "apcs", 2: "apcn", 3: "apch", 4: "ap4h", 5: "ap4x"}  # by profile
_NO_TAG = "\0\0\0\0"

# Tags that describe the container they come from. Muxers write their own.
_STRUCTURE = frozenset(
    {"major_brand", "minor_version", "compatible_brands", "encoder", "duration", "vendor_id"}
    | {"bps", "number_of_frames", "number_of_bytes"}
)
_DEFAULT_NAMES = re.compile("(Video|Sound|Subtitle|TimeCode|Data|Apple .*|Core Media .*)Handler|Core Media .*", re.I)

Convert = Callable[[Any], list[Any]]
"""Turns a packet of the source into packets of the output."""


def set_tags(output: Any, kind: OutputFormat, metadata: Mapping[str, str]) -> None:
    """Add the user's tags among the metadata of a source's stream to a stream of the output."""
    kept = tags(metadata)
    if "name" in kept:  # in MP4 and MOV, where FFmpeg writes it from the tag `title`
        kept.setdefault("title", kept.pop("name"))
    if "language" in kept and kind.muxer == "mov":
        kept["language"] = quicktime(kept["language"])
    output.metadata.update(kept)


def tags(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return the tags of a file or stream that are the user's.

    Names in capitals become lower case: FFmpeg writes all names in capitals to Matroska.
    """
    kept = {name.lower() if name.isupper() else name: value for name, value in metadata.items()}
    if _DEFAULT_NAMES.fullmatch(kept.get("handler_name", "")):
        del kept["handler_name"]
    if kept.get("language") == "und":
        del kept["language"]
    elif "language" in kept:
        kept["language"] = canonical(kept["language"])
    if kept.get("software", "").startswith("Lavf"):  # FFmpeg, in AVI
        del kept["software"]
    is_structure = {name for name in kept if name.lower() in _STRUCTURE or name.lower().startswith("_statistics")}
    return {name: value for name, value in kept.items() if name not in is_structure}


def add_copy(output: OutputContainer, kind: OutputFormat, stream: Any) -> Any | None:
    """Add a copy of a stream to the output.

    Returns:
        The stream in the output; None: the format cannot hold it.
    """
    for tag in _codec_tags(kind, stream):

        def add(container: OutputContainer, tag: str = tag) -> Any:
            return _add(container, kind, stream, tag)

        if kind.holds(add):
            return add(output)
    return None


def _codec_tags(kind: OutputFormat, stream: Any) -> list[str]:
    """Return the codec tags to try: the source's own first, last the muxer's choice."""
    if stream.codec_context is None:
        return [_NO_TAG]
    codec = stream.codec_context.codec.canonical_name
    if not kind.is_quicktime and codec != "prores":  # whose tag is a part of Matroska's codec data
        return [_NO_TAG]
    is_same_kind = "mov" in stream.container.format.name  # other formats have tags of their own
    found = [stream.codec_context.codec_tag] if is_same_kind or codec == "prores" else []
    if codec == "hevc":
        found.append("hvc1")  # QuickTime refuses hev1, which FFmpeg writes by default
    if codec == "prores":
        found.append(_PRORES_TAGS.get(_profile_number(stream), "apch"))
    return [*(tag for tag in found if tag != _NO_TAG), _NO_TAG]


def _profile_number(stream: Any) -> int:
    names = list(stream.codec_context.profiles)
    return names.index(stream.profile) if stream.profile in names else 3


def _add(output: OutputContainer, kind: OutputFormat, stream: Any, tag: str) -> Any:
    copy: Any = output.add_stream_from_template(stream, opaque=True)
    copy.disposition = stream.disposition
    copy.metadata.clear()
    set_tags(copy, kind, stream.metadata)
    if stream.type == "video":
        copy.codec_context.codec_tag = tag
        if stream.guessed_rate:
            copy.codec_context.framerate = stream.guessed_rate  # Matroska's default duration; MOV's timecode needs it
        if aspect_of(stream):
            copy.codec_context.sample_aspect_ratio = aspect_of(stream)
    elif stream.codec_context is not None:
        copy.codec_context.codec_tag = tag
    return copy


def aspect_of(stream: Any) -> Any:
    """Return the sample aspect ratio of a video stream, a Fraction; None if it is unknown or square."""
    aspect = stream.sample_aspect_ratio
    return aspect if aspect and aspect != 1 else None


def copier(
    file: MediaFile, copy: Any, shift_s: float, *, hidden: Hidden | None = None, keeps_hidden: bool = False
) -> Convert:
    """Return a function that moves packets to a stream of the output.

    Args:
        file: The source.
        copy: The stream in the output.
        shift_s: Seconds by which time stamps become earlier.
        hidden: Which packets of a video stream are not shown.
        keeps_hidden: For other streams, whether the packets before the first shown one are kept.
    """
    position, last_dts, is_ordered = -1, None, copy.type in ("video", "audio")

    def convert(packet: Any) -> list[Any]:
        nonlocal position, last_dts, keeps_hidden
        if packet.size == 0:
            return []
        position += 1
        keeps_hidden = keeps_hidden and packet.is_discard
        if packet.is_discard and (hidden.is_dropped(position) if hidden else not keeps_hidden):
            return []
        if packet.pts is None or not file.has_pts:
            packet.pts = packet.dts
        if packet.pts is None:
            raise file.damaged("a frame has no time stamp")
        shift = round(shift_s / packet.time_base)
        packet.pts -= shift
        if packet.dts is not None:
            packet.dts -= shift
            if is_ordered and last_dts is not None and packet.dts <= last_dts:  # which muxers refuse
                packet.dts = last_dts + 1
                packet.pts = max(packet.pts, packet.dts)
            last_dts = packet.dts
        packet.stream = copy
        return [packet]

    return convert


def add_cover(output: OutputContainer, kind: OutputFormat, file: MediaFile, stream: Any) -> Convert | None:
    """Add cover art to the output.

    Returns:
        A function for its packet; None: the format cannot hold it.
    """
    if kind.muxer == "matroska":  # cover art is an attachment, written with the header
        picture = _cover(file, stream)
        mimetype = {"mjpeg": "image/jpeg", "png": "image/png", "gif": "image/gif"}.get(
            stream.codec_context.codec.canonical_name
        )
        if picture is None or mimetype is None:
            return None
        name = stream.metadata.get("filename", f"cover.{mimetype[6:].replace('jpeg', 'jpg')}")
        output.add_attachment(name, mimetype, picture)
        return lambda packet: []
    if kind.muxer != "mp4":
        return None
    copy = add_copy(output, kind, stream)

    def convert(packet: Any) -> list[Any]:
        packet.pts = packet.dts = 0
        packet.stream = copy
        return [packet] if packet.size else []

    return convert if copy else None


def _cover(file: MediaFile, stream: Any) -> bytes | None:
    """Read the picture of a cover stream, in another container: a picture comes at the start of the packets."""
    with open_media(file.path, file.limits) as again:
        for packet in again.packets(again.container.streams[stream.index]):
            return bytes(packet) or None
    return None


def is_text(stream: Any) -> bool:
    """Whether a subtitle stream has text that PyAV can encode again."""
    context = stream.codec_context
    can_encode = context is not None and hasattr(context, "encode_subtitle")
    return can_encode and context.codec.canonical_name in ("subrip", "mov_text", "webvtt", "ass", "text")


def add_text(
    output: OutputContainer,
    kind: OutputFormat,
    file: MediaFile,
    stream: Any,
    shift_s: float,
    leave_out: Callable[[str], None],
) -> Convert:
    """Add a text subtitle stream to the output, encoded again.

    Args:
        output: The output, without a header yet.
        kind: Its format.
        file: The source.
        stream: A stream of the source for which `is_text` is true.
        shift_s: Seconds by which time stamps become earlier.
        leave_out: Called with a text that is too long for the format.

    Returns:
        A function for the packets of the stream.
    """
    source = stream.codec_context
    source.open(strict=False)
    text: Any = output.add_stream(kind.subtitle_encoder)
    text.time_base = stream.time_base  # MP4 holds 35 minutes between two subtitles of the default, 1 us
    text.codec_context.subtitle_header = source.subtitle_header  # of ASS, the common form of all text subtitles
    set_tags(text, kind, stream.metadata)
    text.disposition = stream.disposition

    def convert(packet: Any) -> list[Any]:
        if packet.size == 0 or packet.pts is None:
            return []
        try:
            subtitle = source.decode2(packet)
        except av.FFmpegError as error:
            raise file.damaged("a subtitle cannot be decoded") from error
        if subtitle is None:
            return []
        try:
            encoded = text.codec_context.encode_subtitle(subtitle)
        except av.FFmpegError:
            leave_out(bytes(packet).decode(errors="replace"))
            return []
        encoded.time_base = packet.time_base
        encoded.pts = encoded.dts = packet.pts - round(shift_s / packet.time_base)
        encoded.duration = packet.duration
        encoded.stream = text
        return [encoded]

    return convert


def is_chapter_track(container: InputContainer, stream: Any) -> bool:
    """Whether a stream is the text track of the chapters of a MOV or MP4 file."""
    if stream.type not in ("data", "subtitle") or "mov" not in container.format.name:
        return False
    starts = [chapter["start"] * (chapter["time_base"] or 0) for chapter in container.chapters()]
    return bool(starts) and starts == [e.timestamp * stream.time_base for e in stream.index_entries]
