"""Manifests: a table (.csv), JSON Lines (.jsonl), or a folder of videos. All that is wrong in one is said at once."""

import csv
import json
from collections.abc import Iterator, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from foley.errors import FoleyError, SettingError
from foley_client.render.row import Row

MAX_BYTES = 256 * 2**20
SHOWN = 20  # faults that are listed; the others are counted
SETTINGS = [name for name in Row.model_fields if name not in ("video", "output")]
VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".gif", ".ts", ".mpg", ".mpeg", ".m4v", ".flv", ".wmv")


def read(manifest: Path) -> list[Row]:
    """The rows of `manifest`.

    Raises:
        SettingError: says all that is wrong, by line: what is no row, settings outside their range, a name twice.
    """
    rows: list[Row] = []
    faults: list[str] = []
    lines: dict[str, str] = {}  # output -> where it was named
    try:
        for where, values in _values(manifest):
            try:
                if isinstance(values, str):
                    raise SettingError(values)
                row = Row.model_validate(values)
                row.job(Path(row.video), Path(row.audio) if row.audio else None)
                first = lines.setdefault(row.output.casefold(), where)
                if first != where:
                    raise SettingError(f"output: {row.output!r} is named by {first} too; give each its own")
                rows.append(row)
            except FoleyError as error:
                faults.append(f"{where}: {error}")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(f"the manifest {manifest} cannot be read; give a .csv, a .jsonl or a folder") from error
    refuse(faults, f"rows of {manifest} are wrong")
    if not rows:
        raise SettingError(f"the manifest {manifest} names no video")
    return rows


def refuse(faults: Sequence[str], what: str) -> None:
    """Raise SettingError, if there are any `faults`, that says them."""
    if faults:
        more = [f"... and {len(faults) - SHOWN} more"] if len(faults) > SHOWN else []
        raise SettingError("\n".join([f"{len(faults)} {what}:", *faults[:SHOWN], *more]))


def _values(manifest: Path) -> Iterator[tuple[str, Any]]:
    """Where each row stands, and its values; a text in their place says what is wrong."""
    if manifest.is_dir():
        for path in sorted(manifest.rglob("*")):
            if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file():
                name = path.relative_to(manifest).with_suffix(".mp4").as_posix()
                yield name, {"video": str(path), "output": name}
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
