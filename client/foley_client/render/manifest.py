"""Reads manifests: a table (.csv), JSON Lines (.jsonl), or a folder of videos. All faults are reported at once."""

import csv
import json
import posixpath
import unicodedata
from collections.abc import Iterator, Sequence
from io import StringIO
from itertools import chain, count
from pathlib import Path, PurePosixPath
from typing import Any

from foley.errors import FoleyError, SettingError
from foley_client.render.row import Row
from foley_client.render.storage import SIDECAR, Output, identity

MAX_BYTES = 256 * 2**20
SHOWN = 20  # faults listed in an error message; the others are counted
SETTINGS = [name for name in Row.model_fields if name not in ("video", "output")]
VIDEO_EXTENSIONS = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".gif", ".ts", ".mpg", ".mpeg", ".m4v", ".flv", ".wmv")


class _Outputs:
    """Output names in use, compared after case folding and Unicode normalisation, as some file systems do."""

    def __init__(self) -> None:
        self._files: dict[str, str] = {}  # folded name -> row with this output
        self._folders: dict[str, str] = {}  # folded name -> a row with an output in this folder

    def owner(self, output: str) -> str | None:
        """Return a row that uses this name for its output or for a folder, if any."""
        name = _folded(output)
        return self._files.get(name) or self._folders.get(name)

    def need_folders(self, output: str, row: str) -> None:
        """Reserve the parent folders of `output`, so that no output gets their names."""
        for folder in PurePosixPath(_folded(output)).parents:
            self._folders.setdefault(str(folder), row)

    def add(self, output: str, row: str) -> None:
        """Reserve an output name for a row.

        Raises:
            SettingError: Another row uses the name.
        """
        folders = map(str, PurePosixPath(_folded(output)).parents)
        owner = self.owner(output) or next((self._files[folder] for folder in folders if folder in self._files), None)
        if owner:
            raise SettingError(f"output: {output!r} is also the output of {owner}; use another name")
        self._files[_folded(output)] = row
        self.need_folders(output, row)


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", name).casefold())


def read(manifest: Path, results: Output | None = None) -> list[Row]:
    """Read and validate the rows of a manifest.

    Args:
        manifest: A .csv file, a .jsonl file, or a folder of videos.
        results: The output of the render. Without it, results among the videos are recognised only by their sidecars.

    Raises:
        SettingError: Rows are malformed, settings are out of range, output names are not unique, or results would
            overwrite inputs. The message lists all faults by line.
    """
    rows: list[Row] = []
    faults: list[str] = []
    names = _Outputs()
    try:
        for location, values in _values(manifest, results.folder if results else None):
            try:
                if isinstance(values, str):
                    raise SettingError(values)
                row = Row.model_validate(values)
                row.request(Path(row.video), Path(row.audio) if row.audio else None)
                names.add(row.output, location)
                rows.append(row)
            except FoleyError as error:
                faults.append(f"{location}: {error}")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(
            f"cannot read the manifest {manifest}; give a .csv file, a .jsonl file or a folder"
        ) from error
    if results:
        faults += _replaced(rows, results)
    refuse(faults, f"invalid rows in {manifest}")
    if not rows:
        raise SettingError(f"the manifest {manifest} has no rows; add at least one video")
    return rows


def _replaced(rows: Sequence[Row], results: Output) -> list[str]:
    """Return one fault for each result that would overwrite an input."""
    inputs = {identity(file) for row in rows for file in (row.video, row.audio, row.envelope) if file} - {None}
    return [
        f"{row.video}: the result {results.url}/{row.output} would overwrite an input file; use another folder"
        for row in rows
        if results.identity(row.output) in inputs
    ]


def refuse(faults: Sequence[str], what: str) -> None:
    """Raise an error if there are faults.

    Args:
        faults: One sentence for each fault.
        what: Heading of the message, which follows the number of faults.

    Raises:
        SettingError: There are faults; the message lists them.
    """
    if faults:
        more = [f"... and {len(faults) - SHOWN} more"] if len(faults) > SHOWN else []
        raise SettingError("\n".join([f"{len(faults)} {what}:", *faults[:SHOWN], *more]))


def _values(manifest: Path, results: Path | None) -> Iterator[tuple[str, Any]]:
    """Yield the location and the values of each row; a string in place of the values is an error message."""
    if manifest.is_dir():
        yield from _folder(manifest, results)
        return
    if manifest.stat().st_size > MAX_BYTES:
        raise SettingError(f"{manifest} is larger than {MAX_BYTES >> 20} MiB; split it")
    text = manifest.read_text(encoding="utf-8-sig")
    folder = manifest.parent
    read_all = {".csv": _csv, ".jsonl": _jsonl}.get(manifest.suffix.lower())
    if read_all is None:
        raise SettingError(
            f"{manifest} does not have a supported extension; give a .csv file, a .jsonl file or a folder"
        )
    for where, values in read_all(text):
        yield where, values if isinstance(values, str) else _located(values, folder)


def _folder(folder: Path, results: Path | None) -> Iterator[tuple[str, Any]]:
    """Yield one row for each video.

    An output keeps the complete file name of its video (`b.mov` becomes `b.mov.mp4`), so that it does not depend on
    whether the folder contains other videos with the same stem.
    """
    videos = {path.relative_to(folder).as_posix(): path for path in _videos(folder, results)}
    names = _Outputs()
    for name in videos:
        names.need_folders(name, name)
    for name, path in videos.items():
        preferred = name if path.suffix.lower() == ".mp4" else f"{name}.mp4"
        stem, extension = posixpath.splitext(preferred)
        candidates = chain(
            [preferred], (f"{stem}-{i}{extension}" for i in count(2))
        )  # a.mp4 and A.mp4, or b.mov and b.mov.mp4
        output = next(candidate for candidate in candidates if not names.owner(candidate))
        names.add(output, name)
        yield name, {"video": str(path), "output": output}


def _videos(folder: Path, results: Path | None) -> Iterator[Path]:
    """Yield the videos in a folder, except results of renders: files in `results`, with a sidecar, or partial."""
    root, written = folder.resolve(), results.resolve() if results else None
    if written == root:
        raise SettingError(f"the output folder is the folder of videos, {folder}; use another output folder")
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in VIDEO_EXTENSIONS or not path.is_file():
            continue
        is_result = written and root in written.parents and written in path.resolve().parents
        is_partial = path.name.startswith(".foley-")
        if not (is_result or is_partial or path.with_name(path.name + SIDECAR).is_file()):
            yield path


def _csv(text: str) -> Iterator[tuple[str, Any]]:
    table = csv.DictReader(StringIO(text), restkey="", strict=True)
    try:
        for values in table:
            where = f"line {table.line_num}"
            if "" in values:
                yield where, "it has more cells than the header"
            else:
                yield where, {name.strip(): cell.strip() for name, cell in values.items() if name and cell}
    except csv.Error as error:
        yield f"line {table.line_num}", f"it is not valid CSV ({error})"


def _jsonl(text: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            values = None
        yield f"line {number}", values if isinstance(values, dict) else "it is not a JSON object"


def _located(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Resolve paths relative to the folder of the manifest; URLs are unchanged."""
    files = {name: values[name] for name in ("video", "audio", "envelope") if isinstance(values.get(name), str)}
    return {**values, **{name: file if "://" in file else str(folder / file) for name, file in files.items()}}
