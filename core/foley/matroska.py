"""Adds the shape of the pixels to a Matroska or WebM file.

Matroska stores it as the display size of the video track. FFmpeg's muxer writes it from a field of the stream that
PyAV cannot set. The muxer leaves a `Void` element before `Info` and `Tracks`: both move into it by the size of the new
elements, so that nothing behind them moves.

Elements and their IDs: RFC 8794 (EBML) and RFC 9559 (Matroska).
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

_SEGMENT, _SEEK_HEAD, _SEEK, _SEEK_ID, _SEEK_POSITION = 0x18538067, 0x114D9B74, 0x4DBB, 0x53AB, 0x53AC
_VOID, _CRC32, _INFO, _TRACKS = 0xEC, 0xBF, 0x1549A966, 0x1654AE6B
_VIDEO = 0xE0
_WIDTH, _HEIGHT, _DISPLAY_WIDTH, _DISPLAY_HEIGHT, _DISPLAY_UNIT = 0xB0, 0xBA, 0x54B0, 0x54BA, 0x54B2
_HEADER_BYTES = 1 << 20  # the elements are at the start of the file
_PIXELS, _RATIO = 0, 3  # units of the display size


def set_aspect(path: Path, aspect: Fraction) -> bool:
    """Set the sample aspect ratio of the first video track of a file that FFmpeg has written.

    Args:
        path: The file.
        aspect: Width of a pixel over its height.

    Returns:
        Whether there was room for it. If not, the file is unchanged.
    """
    with path.open("r+b") as file:
        head = file.read(_HEADER_BYTES)
        segment = next(one for one in _elements(head, 0, len(head)) if one.id == _SEGMENT)
        parts = {}
        for one in _elements(head, segment.start, len(head) - 12):
            parts[one.id] = one
            if one.id == _TRACKS:
                break
        if not {_SEEK_HEAD, _VOID, _INFO, _TRACKS} <= parts.keys() or parts[_TRACKS].end > len(head):
            return False
        tracks = _with_aspect(head, parts[_TRACKS], aspect)
        growth = len(tracks) - (parts[_TRACKS].end - parts[_TRACKS].offset)
        void = parts[_VOID].end - parts[_VOID].offset - growth
        if void < 9:
            return False
        file.seek(parts[_SEEK_HEAD].offset)
        file.write(_with_positions(head, parts[_SEEK_HEAD], growth))
        file.write(_element(_VOID, bytes(void - 9), 8))
        file.write(head[parts[_INFO].offset : parts[_INFO].end])
        file.write(tracks)
    return True


@dataclass(frozen=True)
class _Element:
    """An element: `offset` is that of its ID, `start` and `end` are those of its content."""

    id: int
    offset: int
    start: int
    end: int
    size_bytes: int


def _elements(data: bytes, position: int, end: int) -> Iterator[_Element]:
    while position < end - 1:
        id_bytes = 9 - data[position].bit_length()
        size_at = position + id_bytes
        size_bytes = 9 - data[size_at].bit_length()
        start = size_at + size_bytes
        size = int.from_bytes(data[size_at:start], "big") & ((1 << 7 * size_bytes) - 1)
        yield _Element(int.from_bytes(data[position:size_at], "big"), position, start, start + size, size_bytes)
        position = start + size


def _element(id_: int, content: bytes, size_bytes: int = 1) -> bytes:
    while len(content) >= (1 << 7 * size_bytes) - 1:
        size_bytes += 1
    size = len(content) | 1 << 7 * size_bytes
    return id_.to_bytes((id_.bit_length() + 7) // 8, "big") + size.to_bytes(size_bytes, "big") + content


def _number(id_: int, value: int) -> bytes:
    return _element(id_, value.to_bytes(max(1, (value.bit_length() + 7) // 8), "big"))


def _value(data: bytes, element: _Element) -> int:
    return int.from_bytes(data[element.start : element.end], "big")


def _rebuilt(data: bytes, parent: _Element, contents: list[bytes]) -> bytes:
    """Return `parent` with these child elements, and a new checksum if it had one."""
    joined = b"".join(contents)
    first = next(_elements(data, parent.start, parent.end))
    if first.id == _CRC32:
        joined = _element(_CRC32, zlib.crc32(joined).to_bytes(4, "little")) + joined
    return _element(parent.id, joined, parent.size_bytes)


def _children(data: bytes, parent: _Element) -> list[_Element]:
    return [one for one in _elements(data, parent.start, parent.end) if one.id != _CRC32]


def _with_positions(data: bytes, seek_head: _Element, growth: int) -> bytes:
    """Return the index of the top elements after `Info` and `Tracks` have moved forward by `growth` bytes."""
    seeks = []
    for seek in _children(data, seek_head):
        fields = {one.id: one for one in _children(data, seek)}
        position = _value(data, fields[_SEEK_POSITION])
        if _value(data, fields[_SEEK_ID]) in (_INFO, _TRACKS):
            position -= growth
        width = fields[_SEEK_POSITION].end - fields[_SEEK_POSITION].start
        contents = data[fields[_SEEK_ID].offset : fields[_SEEK_ID].end]
        contents += _element(_SEEK_POSITION, position.to_bytes(width, "big"))
        seeks.append(_element(_SEEK, contents, seek.size_bytes))
    return _rebuilt(data, seek_head, seeks)


def _with_aspect(data: bytes, tracks: _Element, aspect: Fraction) -> bytes:
    entries, done = [], False
    for entry in _children(data, tracks):
        fields = _children(data, entry)
        contents = []
        for field in fields:
            content = data[field.offset : field.end]
            if field.id == _VIDEO and not done:
                content, done = _rebuilt(data, field, _video(data, field, aspect)), True
            contents.append(content)
        entries.append(_rebuilt(data, entry, contents))
    return _rebuilt(data, tracks, entries)


def _video(data: bytes, video: _Element, aspect: Fraction) -> list[bytes]:
    fields = _children(data, video)
    width, height = (next(_value(data, one) for one in fields if one.id == id_) for id_ in (_WIDTH, _HEIGHT))
    shown, unit = Fraction(width) * aspect, _PIXELS
    if shown.denominator == 1:
        size = (int(shown), height)
    else:
        ratio, unit = shown / height, _RATIO
        size = (ratio.numerator, ratio.denominator)
    kept = [
        data[one.offset : one.end] for one in fields if one.id not in (_DISPLAY_WIDTH, _DISPLAY_HEIGHT, _DISPLAY_UNIT)
    ]
    units = [_number(_DISPLAY_UNIT, unit)] if unit else []
    return [*kept, _number(_DISPLAY_WIDTH, size[0]), _number(_DISPLAY_HEIGHT, size[1]), *units]
