"""Finds the tags that an output format did not hold, by reading the file that was written."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import av
from av.container import Container

from foley.languages import canonical

_OF_STREAMS = ("language", "title", "timecode")


@dataclass(frozen=True)
class Tags:
    """The tags of a file.

    Attributes:
        file: Tags of the file.
        streams: Tags of its streams: those that are compared.
        chapters: Number of chapters.
    """

    file: Mapping[str, str]
    streams: tuple[Mapping[str, str], ...]
    chapters: int

    @staticmethod
    def of(container: Container, metadata: Mapping[str, str] | None = None) -> "Tags":
        """Return the tags of an open file; `metadata` replaces those of the file itself."""
        streams = [_folded(stream.metadata) for stream in container.streams if stream.type in ("video", "audio")]
        of_streams = tuple({name: tags[name] for name in _OF_STREAMS if name in tags} for tags in streams)
        return Tags(_folded(metadata or container.metadata), of_streams, len(container.chapters()))


def lost_tags(meant: Tags, path: Path) -> list[str]:
    """Return one sentence for each kind of tag that is missing in the file at `path`."""
    with av.open(f"file:{path}", metadata_errors="replace") as container:
        found = Tags.of(container)
    lost = [name for name in meant.file if name not in found.file]
    sentences = [f"the tags {', '.join(sorted(lost))} are lost: {path.suffix} does not hold them"] if lost else []
    for number, (tags, kept) in enumerate(zip(meant.streams, found.streams, strict=False), 1):
        sentences += [
            f"the {name} of track {number}, {value}, is lost: {path.suffix} does not hold it"
            for name, value in tags.items()
            if kept.get(name) != value
        ]
    if found.chapters < meant.chapters:
        sentences.append(f"the chapters are lost: {path.suffix} does not hold them")
    return sentences


def _folded(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return tags with names in lower case, and with one code for each language."""
    tags = {name.lower(): value for name, value in metadata.items()}
    if "name" in tags:
        tags["title"] = tags["name"]
    if "language" in tags:
        tags["language"] = canonical(tags["language"])
    return tags
