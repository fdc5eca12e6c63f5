"""Reads manifests: a table, JSON Lines, or a folder of videos. All faults are reported at once."""

import json
from collections.abc import Callable, Iterator, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from foley.errors import FoleyError, SettingError
from foley_client.render import folder, table
from foley_client.render.output_names import OutputNames
from foley_client.render.row import Row
from foley_client.render.storage import Output, identity

MAX_BYTES = 256 * 2**20
SHOWN = 20  # faults listed in an error message; the others are counted
SETTINGS = [name for name in Row.model_fields if name not in ("video", "output")]


def read(
    manifest: Path, results: Output | None = None, say: Callable[[str], None] = lambda sentence: None
) -> list[Row]:
    """Read and validate the rows of a manifest.

    Args:
        manifest: A table (.csv, .tsv, .txt), a .jsonl file, or a folder of videos.
        results: The output of the render. Without it, results among the videos are recognised only by their sidecars.
        say: Receives remarks that are no faults, one sentence each.

    Returns:
        The rows, with one row for each variation.

    Raises:
        SettingError: Rows are malformed, settings are out of range, output names are not unique, or results would
            overwrite inputs. The message lists all faults by line.
    """
    rows: list[Row] = []
    faults: list[str] = []
    written = results.folder if results else None
    names = OutputNames(written)
    try:
        for location, values in _values(manifest, written, say):
            try:
                if isinstance(values, str):
                    raise SettingError(values)
                row = Row.model_validate(values)
                row.request(Path(row.video), Path(row.audio) if row.audio else None)
                for variant in row.variants():
                    names.add(variant.output, location)
                    rows.append(variant)
            except FoleyError as error:
                faults.append(f"{location}: {error}")
    except OSError as error:
        raise SettingError(
            f"cannot read the manifest {error.filename or manifest} ({error.strerror}); check the name and permissions"
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
        what: Heading of the message, which the number of faults follows.

    Raises:
        SettingError: There are faults; the message lists them.
    """
    if faults:
        more = [f"... and {len(faults) - SHOWN} more"] if len(faults) > SHOWN else []
        raise SettingError("\n".join([f"{what} ({len(faults)}):", *faults[:SHOWN], *more]))


def _values(manifest: Path, results: Path | None, say: Callable[[str], None]) -> Iterator[tuple[str, Any]]:
    """Yield the location and the values of each row; a string in place of the values is an error message."""
    if manifest.is_dir():
        yield from folder.read(manifest, results, say)
        return
    read_all = _READERS.get(manifest.suffix.lower())
    if manifest.suffix.lower() in table.WORKBOOKS:
        raise SettingError(table.not_a_workbook(manifest))
    if read_all is None or (manifest.exists() and not manifest.is_file()):  # opening a pipe would block
        raise SettingError(f"{manifest} is not a manifest; give a .csv file, a .jsonl file or a folder")
    with manifest.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise SettingError(f"{manifest} is larger than {MAX_BYTES >> 20} MiB; split it")
    for where, values in read_all(table.decode(manifest, content)):
        yield where, values if isinstance(values, str) else _located(values, manifest.parent)


def _json_lines(text: str) -> Iterator[tuple[str, Any]]:
    named: set[str] = set()  # unknown names, each of which is reported once
    for number, line in enumerate(StringIO(text), 1):
        if not line.strip():
            continue
        where = f"line {number}"
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            values = None
        if not isinstance(values, dict):
            yield where, "it is not a JSON object"
            continue
        if fault := table.unknown(name for name in values if name not in named):
            yield where, fault
            named.update(values)
        yield (
            where,
            {table.column(name): value for name, value in values.items() if table.column(name) in table.COLUMNS},
        )


_READERS: dict[str, Callable[[str], Iterator[tuple[str, Any]]]] = {
    ".csv": table.read,
    ".tsv": table.read,
    ".txt": table.read,
    ".jsonl": _json_lines,
}


def _located(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Resolve paths relative to the folder of the manifest; URLs are unchanged."""
    files = {name: values[name] for name in ("video", "audio", "envelope") if isinstance(values.get(name), str)}
    return {**values, **{name: file if "://" in file else str(folder / file) for name, file in files.items()}}
