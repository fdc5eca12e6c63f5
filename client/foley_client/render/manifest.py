"""Manifests: a table (.csv), JSON Lines (.jsonl), or a folder of videos. All that is wrong in one is said at once."""

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
from foley_client.render.place import SIDECAR, Output, identity
from foley_client.render.row import Row

MAX_BYTES = 256 * 2**20
SHOWN = 20  # faults that are listed; the others are counted
SETTINGS = [name for name in Row.model_fields if name not in ("video", "output")]
VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".gif", ".ts", ".mpg", ".mpeg", ".m4v", ".flv", ".wmv")


class _Outputs:
    """Names of results below the output folder, compared as file systems do that ignore case and Unicode's forms."""

    def __init__(self) -> None:
        self._files: dict[str, str] = {}  # name -> the row that has it
        self._folders: dict[str, str] = {}  # name -> a row whose result lies in it

    def owner(self, output: str) -> str | None:
        """A row that has this name, or needs it for a folder."""
        name = _folded(output)
        return self._files.get(name) or self._folders.get(name)

    def need_folders(self, output: str, row: str) -> None:
        """Keep the folders of `output` from becoming results."""
        for folder in PurePosixPath(_folded(output)).parents:
            self._folders.setdefault(str(folder), row)

    def add(self, output: str, row: str) -> None:
        """Give a name to a row. Raises SettingError where another row has it."""
        folders = map(str, PurePosixPath(_folded(output)).parents)
        owner = self.owner(output) or next((self._files[one] for one in folders if one in self._files), None)
        if owner:
            raise SettingError(f"output: {output!r} is named by {owner} too; give each its own")
        self._files[_folded(output)] = row
        self.need_folders(output, row)


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", name).casefold())


def read(manifest: Path, results: Output | None = None) -> list[Row]:
    """The rows of `manifest`.

    Args:
        results: where they are rendered to; without it, results among the inputs are known by their sidecars only.

    Raises:
        SettingError: says all that is wrong, by line: what is no row, settings outside their range, a name twice, a
            result that would replace an input.
    """
    rows: list[Row] = []
    faults: list[str] = []
    named = _Outputs()
    try:
        for where, values in _values(manifest, results.folder if results else None):
            try:
                if isinstance(values, str):
                    raise SettingError(values)
                row = Row.model_validate(values)
                row.job(Path(row.video), Path(row.audio) if row.audio else None)
                named.add(row.output, where)
                rows.append(row)
            except FoleyError as error:
                faults.append(f"{where}: {error}")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(f"the manifest {manifest} cannot be read; give a .csv, a .jsonl or a folder") from error
    if results:
        faults += _replaced(rows, results)
    refuse(faults, f"rows of {manifest} are wrong")
    if not rows:
        raise SettingError(f"the manifest {manifest} names no video")
    return rows


def _replaced(rows: Sequence[Row], results: Output) -> list[str]:
    """What results would replace of that which is read."""
    inputs = {identity(one) for row in rows for one in (row.video, row.audio, row.envelope) if one} - {None}
    return [
        f"{row.video}: its result {results.url}/{row.output} would replace a file that is read; choose another folder"
        for row in rows
        if results.identity(row.output) in inputs
    ]


def refuse(faults: Sequence[str], what: str) -> None:
    """Raise SettingError, if there are any `faults`, that says them."""
    if faults:
        more = [f"... and {len(faults) - SHOWN} more"] if len(faults) > SHOWN else []
        raise SettingError("\n".join([f"{len(faults)} {what}:", *faults[:SHOWN], *more]))


def _values(manifest: Path, results: Path | None) -> Iterator[tuple[str, Any]]:
    """Where each row stands, and its values; a text in their place says what is wrong."""
    if manifest.is_dir():
        yield from _folder(manifest, results)
        return
    if manifest.stat().st_size > MAX_BYTES:
        raise SettingError(f"{manifest} is larger than {MAX_BYTES >> 20} MiB; split it")
    text = manifest.read_text(encoding="utf-8-sig")
    folder = manifest.parent
    read_all = {".csv": _csv, ".jsonl": _jsonl}.get(manifest.suffix.lower())
    if read_all is None:
        raise SettingError(f"{manifest} has an ending of no known kind; give a .csv, a .jsonl or a folder")
    for where, values in read_all(text):
        yield where, values if isinstance(values, str) else _located(values, folder)


def _folder(folder: Path, results: Path | None) -> Iterator[tuple[str, Any]]:
    """A row for every video. Its result has the whole name of the video, whatever videos lie beside it."""
    videos = {path.relative_to(folder).as_posix(): path for path in _videos(folder, results)}
    named = _Outputs()
    for name in videos:
        named.need_folders(name, name)
    for name, path in videos.items():
        wanted = name if path.suffix.lower() == ".mp4" else f"{name}.mp4"
        stem, ending = posixpath.splitext(wanted)
        names = chain([wanted], (f"{stem}-{i}{ending}" for i in count(2)))  # the case differs, or b.mov, b.mov.mp4
        output = next(one for one in names if not named.owner(one))
        named.add(output, name)
        yield name, {"video": str(path), "output": output}


def _videos(folder: Path, results: Path | None) -> Iterator[Path]:
    """The videos in a folder, but for those that a render has written: into `results`, or wherever a sidecar is."""
    root, written = folder.resolve(), results.resolve() if results else None
    if written == root:
        raise SettingError(f"the results would lie among the videos; choose another output folder than {folder}")
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in VIDEO_SUFFIXES or not path.is_file():
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
                yield where, "it has more cells than the heading"
            else:
                yield where, {name.strip(): cell.strip() for name, cell in values.items() if name and cell}
    except csv.Error as error:
        yield f"line {table.line_num}", f"it is no line of a table ({error})"


def _jsonl(text: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            values = None
        yield f"line {number}", values if isinstance(values, dict) else "it is no JSON object"


def _located(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Paths are the manifest's neighbours; URLs stay."""
    files = {name: values[name] for name in ("video", "audio", "envelope") if isinstance(values.get(name), str)}
    return {**values, **{name: file if "://" in file else str(folder / file) for name, file in files.items()}}
