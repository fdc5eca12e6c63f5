"""Reads a folder of videos as a manifest."""

import os
import posixpath
from collections.abc import Callable, Iterator
from itertools import chain, count
from pathlib import Path

from foley.errors import SettingError
from foley_client.render.output_names import OutputNames
from foley_client.render.storage import SIDECAR

# fmt: off
VIDEO_EXTENSIONS = (
    ".mp4", ".m4v", ".mov", ".qt", ".mkv", ".webm", ".avi", ".divx", ".gif", ".apng", ".flv", ".f4v", ".wmv", ".asf",
    ".ts", ".mts", ".m2t", ".m2ts", ".mpg", ".mpeg", ".mpe", ".vob", ".mod", ".tod", ".mxf", ".dv", ".3gp", ".3g2",
    ".ogv", ".ogm", ".y4m", ".ivf",
)
# fmt: on
# Folders of operating systems and storage appliances; names with a leading dot are hidden, too.
HIDDEN_FOLDERS = ("@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "__MACOSX")
SHOWN = 5  # names of files that are passed over


def read(folder: Path, results: Path | None, say: Callable[[str], None]) -> Iterator[tuple[str, dict[str, str]]]:
    """Read the videos in a folder, except hidden ones and results of renders.

    An output keeps the complete file name of its video (`b.mov` becomes `b.mov.mp4`), so that it does not depend on
    whether the folder contains other videos with the same stem.

    Args:
        folder: The folder.
        results: The output folder, whose files are no inputs.
        say: Receives one sentence on files that are not videos.

    Yields:
        The name and the values of each row.

    Raises:
        SettingError: The output folder is the folder of videos.
        OSError: A folder cannot be read.
    """
    files = {path.relative_to(folder).as_posix(): path for path in _files(folder, results)}
    videos = {name: path for name, path in files.items() if path.suffix.lower() in VIDEO_EXTENSIONS}
    if others := sorted(files.keys() - videos.keys()):
        shown = ", ".join(others[:SHOWN]) + (", ..." if len(others) > SHOWN else "")
        counted = f"{len(others)} other files were" if len(others) > 1 else "1 other file was"
        say(f"{counted} passed over: {shown}")
    names = OutputNames()
    for name in videos:
        names.need_folders(name, name)
    for name, path in videos.items():
        preferred = name if path.suffix.lower() == ".mp4" else f"{name}.mp4"
        stem, extension = posixpath.splitext(preferred)
        numbered = (f"{stem}-{i}{extension}" for i in count(2))  # a.mp4 and A.mp4, or b.mov and b.mov.mp4
        output = next(candidate for candidate in chain([preferred], numbered) if not names.owner(candidate))
        names.add(output, name)
        yield name, {"video": str(path), "output": output}


def _files(folder: Path, results: Path | None) -> Iterator[Path]:
    """Yield the visible files in a folder, sorted, except those of renders: in `results`, or results with sidecars."""
    root, written = folder.resolve(), results.resolve() if results else None
    if written == root:
        raise SettingError(f"the output folder is the folder of videos, {folder}; use another output folder")
    found = []
    for parent, folders, files in os.walk(folder, onerror=_refuse):
        folders[:] = [name for name in folders if name not in HIDDEN_FOLDERS and not name.startswith(".")]
        if written and root in written.parents and written in (Path(parent).resolve() / "any").parents:
            folders.clear()
            continue
        sidecars = {name for name in files if name.endswith(SIDECAR)}
        found += [
            Path(parent, name)
            for name in files
            if not name.startswith(".") and name not in sidecars and name + SIDECAR not in sidecars
        ]
    return (path for path in sorted(found) if path.is_file())


def _refuse(error: OSError) -> None:
    raise error
