"""Finds the tags that an output format did not hold, by reading the file that was written."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import av
from av.container import Container
from av.stream import Disposition

from foley.languages import canonical

_OF_MUXERS = frozenset({"encoder", "duration", "handler_name", "vendor_id", "creation_time", "alpha_mode"})
_CHANGED = frozenset({"creation_time", "location", "location-eng"})  # the same time or place in another form
_SET = Disposition.default | Disposition.attached_pic  # that depend on the other tracks and the format
_NEAR_S = 0.01


@dataclass(frozen=True)
class Tags:
    """The tags of a file.

    Attributes:
        file: Tags of the file.
        streams: Tags and dispositions of its video, sound and subtitle streams.
        chapters: Start of each chapter, in seconds.
    """

    file: Mapping[str, str]
    streams: tuple[tuple[Mapping[str, str], Disposition], ...]
    chapters: tuple[float, ...]

    @staticmethod
    def of(container: Container, metadata: Mapping[str, str] | None = None) -> "Tags":
        """Return the tags of an open file; `metadata` replaces those of the file itself."""
        streams = [stream for stream in container.streams if stream.type in ("video", "audio", "subtitle")]
        chapters = [float(one["start"] * (one["time_base"] or 0)) for one in container.chapters()]
        of_streams = tuple((_folded(one.metadata), Disposition(one.disposition & ~_SET)) for one in streams)
        return Tags(_folded(metadata or container.metadata), of_streams, tuple(chapters))


def lost_tags(meant: Tags, path: Path) -> list[str]:
    """Return one sentence for each kind of tag that is missing in the file at `path`."""
    with av.open(f"file:{path}", metadata_errors="replace") as container:
        found = Tags.of(container)
    sentences = [_lost(f"the tags {names}", path) for names in [_missing(meant.file, found.file)] if names]
    for number, ((tags, marks), (kept, kept_marks)) in enumerate(zip(meant.streams, found.streams, strict=False), 1):
        if names := _missing(tags, kept):
            sentences.append(_lost(f"the tags {names} of track {number}", path))
        if left := marks & ~kept_marks:
            sentences.append(_lost(f"the disposition {str(left.name).replace('|', ', ')} of track {number}", path))
    near = (abs(one - other) < _NEAR_S for one, other in zip(meant.chapters, found.chapters, strict=False))
    if len(found.chapters) < len(meant.chapters) or not all(near):
        sentences.append(f"the chapters are not at their times: {path.suffix} does not hold them")
    return sentences


def _missing(meant: Mapping[str, str], found: Mapping[str, str]) -> str:
    """Return the names of tags that are missing or have another value, as words."""
    lost = [
        name for name, value in meant.items() if name not in found or (found[name] != value and name not in _CHANGED)
    ]
    words = (f"{name} ({meant[name]})" if name == "language" else name for name in sorted(lost))
    return ", ".join(words)


def _lost(what: str, path: Path) -> str:
    return f"{what} are lost: {path.suffix} does not hold them" if what.startswith("the tags") else f"{what} is lost"


def _folded(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return the tags that muxers do not write themselves, with names in lower case, and one code for a language."""
    tags = {name.lower(): value for name, value in metadata.items() if name.lower() not in _OF_MUXERS}
    if "name" in tags:
        tags["title"] = tags.pop("name")
    if "language" in tags:
        tags["language"] = canonical(tags["language"])
    return tags
