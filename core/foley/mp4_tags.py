"""Tags of MP4 files besides those that FFmpeg's muxer knows.

FFmpeg writes either a fixed list of tags, those that all players show, and the cover, or tags of any name that few
players show. This module adds tags of any name to the fixed list, as iTunes does: as `----` atoms with a name. FFmpeg
writes a placeholder of the same size, which they replace, so that nothing else in the file moves.
"""

import hashlib
import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

_TEXTS = frozenset(
    {"title", "artist", "album_artist", "composer", "album", "date", "comment", "genre", "copyright", "grouping"}
    | {"lyrics", "description", "synopsis", "show", "network", "episode_id", "keywords", "timecode"}
)
_FORMS = {  # of tags that the muxer does not write as they are
    **dict.fromkeys(("track", "disc"), r"\d+(/\d+)?"),
    **dict.fromkeys(("media_type", "season_number", "episode_sort", "hd_video", "compilation"), r"\d+"),
    "creation_time": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d.*",
    "location": r"[+-][\d.]+[+-][\d.]+.*",
    "location-eng": r"[+-][\d.]+[+-][\d.]+.*",
}
_PLACEHOLDERS = ("grouping", "network", "episode_id", "keywords", "synopsis")  # tags that videos rarely have
_OVERHEAD = 24  # bytes of an atom of FFmpeg's list besides its text: two headers, a type and a locale
_MEAN = b"com.apple.iTunes"


class ExtraTags:
    """The tags of a file that FFmpeg's muxer does not know.

    Args:
        tags: All tags of the file.

    Attributes:
        known: The tags to give to the muxer, with a placeholder for the others.
    """

    def __init__(self, tags: Mapping[str, str]) -> None:
        self.known = {name: value for name, value in tags.items() if _is_known(name, value)}
        extra = {name: value for name, value in tags.items() if name not in self.known}
        key = next((key for key in _PLACEHOLDERS if key not in self.known), None)
        self._atoms = b"".join(_atom(name, value) for name, value in extra.items()) if key else b""
        if key and self._atoms:
            marker = hashlib.sha256(self._atoms).hexdigest()
            self._text = marker[: len(self._atoms) - _OVERHEAD].ljust(len(self._atoms) - _OVERHEAD, ".")
            self.known[key] = self._text

    def write(self, path: Path) -> None:
        """Write the tags to a file that was written with `known`."""
        if not self._atoms:
            return
        with path.open("r+b") as file:
            for kind, offset, size in _atoms(path):
                if kind == b"moov":
                    file.seek(offset)
                    text = file.read(size).find(self._text.encode())
                    if text >= 0:
                        file.seek(offset + text - _OVERHEAD)
                        file.write(self._atoms)
                    return


def _is_known(name: str, value: str) -> bool:
    return name in _TEXTS or (name in _FORMS and re.fullmatch(_FORMS[name], value, re.ASCII) is not None)


def _atoms(path: Path) -> Iterator[tuple[bytes, int, int]]:
    """Yield the type, offset and size of each atom of a file."""
    offset, end = 0, path.stat().st_size
    with path.open("rb") as file:
        while offset < end:
            file.seek(offset)
            size, kind, large = struct.unpack(">I4sQ", file.read(16).ljust(16, b"\0"))
            size = {0: end - offset, 1: large}.get(size, size)
            yield kind, offset, size
            offset += max(8, size)


def _atom(name: str, value: str) -> bytes:
    content = _box(b"mean", bytes(4) + _MEAN) + _box(b"name", bytes(4) + name.encode())
    return _box(b"----", content + _box(b"data", struct.pack(">II", 1, 0) + value.encode()))  # 1: UTF-8


def _box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(content), kind) + content
