"""Reads the chunks of RIFF WAVE files, independently of the program and its libraries."""

import json
import struct
from pathlib import Path
from typing import Any
from xml.etree import ElementTree


def chunks(path: Path) -> dict[str, bytes]:
    """Return the content of every chunk by its name; the declared sizes must add up to the size of the file."""
    content = path.read_bytes()
    kind, size, form = struct.unpack_from("<4sI4s", content)
    assert (kind, size, form) == (b"RIFF", len(content) - 8, b"WAVE")
    found, position = {}, 12
    while position < len(content):
        name, size = struct.unpack_from("<4sI", content, position)
        found[name.decode()] = content[position + 8 : position + 8 + size]
        position += 8 + size + size % 2
    assert position == len(content)
    return found


def ixml(path: Path) -> ElementTree.Element:
    """Return the root of the file's iXML."""
    return ElementTree.fromstring(chunks(path)["iXML"])


def recipe(path: Path) -> Any:
    """Return the recipe of a file that the program wrote."""
    return json.loads(ixml(path).findtext("FOLEY/RECIPE") or "")
