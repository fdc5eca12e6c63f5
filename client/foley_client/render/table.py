"""Reads tables as spreadsheets write them: their encodings, separators, headings, empty cells and decimal commas."""

import codecs
import csv
import difflib
import re
from collections.abc import Iterable, Iterator
from io import StringIO
from pathlib import Path

from foley.errors import SettingError
from foley.options import MAX_SHOWN, FileOptions
from foley_client.render.row import Row

Values = dict[str, str]
COLUMNS = tuple(sorted(Row.model_fields, key=FileOptions.model_fields.__contains__))  # files first
SEPARATORS = ",;\t"
SHOWN = 5  # unknown columns in a message
_BOMS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
WORKBOOKS = (".xlsx", ".xlsm", ".xls", ".ods", ".numbers")
_SIGNATURES = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")  # of workbooks: zip archives, and .xls
_SEP_LINE = re.compile(r"\"?sep=(.)\"?(\r\n?|\n)")
_ROUNDED = re.compile(r"\d([.,]\d+)?E\+\d+", re.IGNORECASE)
_GROUPED = re.compile(r"\d{1,3}([.,]\d{3})+")
_FLOATS = {name for name, field in Row.model_fields.items() if "float" in str(field.annotation)}
_INTEGERS = {name for name, field in Row.model_fields.items() if "int" in str(field.annotation)} - _FLOATS


def decode(path: Path, content: bytes) -> str:
    """Decode a text file: UTF-8, or UTF-16 with a byte order mark.

    Other encodings are refused: a wrong guess changes prompts and names of files without notice.

    Raises:
        SettingError: The file is in another encoding, or it is a workbook.
    """
    if content.startswith(_SIGNATURES):
        raise SettingError(not_a_workbook(path))
    encoding = next((name for bom, name in _BOMS.items() if content.startswith(bom)), "utf-8")
    try:
        text = content.decode(encoding)
        if "\0" not in text:
            return text
    except UnicodeDecodeError:
        pass
    raise SettingError(f"{path} is not UTF-8 text; in Excel, choose 'CSV UTF-8' when you save it")


def not_a_workbook(path: Path) -> str:
    """Return the error message for a workbook."""
    return f"{path} is a workbook; save it as 'CSV UTF-8' and give the .csv file"


def read(text: str) -> Iterator[tuple[str, Values | str]]:
    """Read a table, whose first line names the columns.

    The separator is a comma, a semicolon or a tab: that which gives the most known columns, or that which Excel's line
    `sep=;` names. Empty rows, columns and cells are left out.

    Yields:
        The line and the values of each row by column; a string in place of the values says what is wrong with it.
    """
    line, separator = 1, _separator(text)
    if said := _SEP_LINE.match(text):
        line, separator, text = 2, said[1], text[said.end() :]
        if separator not in SEPARATORS:
            yield "line 1", f"the separator {separator!r} is not supported; use a comma, a semicolon or a tab"
            return
    first, names = line, list[str]()
    # spaces before a quote would make it a part of the cell
    table = csv.reader(StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True)
    try:
        for row in table:
            where, line = f"line {line}", first + table.line_num
            cells = [cell.strip() for cell in row]
            if not any(cells):
                continue
            if names:
                yield where, _values(names, cells)
                continue
            names = [column(cell) for cell in cells]
            if fault := _fault_of_headings(cells, names):
                yield where, fault
            if "video" not in names:
                return
    except csv.Error as error:
        yield f"line {line}", f"it is not valid CSV ({error})"


def column(heading: str) -> str:
    """Return the column of a heading in any spelling: `Negative Text` is `negative_text`."""
    return re.sub(r"[\s_-]+", "_", heading.strip().casefold())


def unknown(names: Iterable[str]) -> str:
    """Return one sentence on columns that do not exist, or "" if there are none."""
    found = [name for name in names if column(name) not in COLUMNS]
    named = " or ".join(map(_with_guess, found[:SHOWN])) + (" and others" if len(found) > SHOWN else "")
    return f"there is no column {named}; the columns are {', '.join(COLUMNS)}" if found else ""


def _with_guess(name: str) -> str:
    guess = difflib.get_close_matches(column(name[:MAX_SHOWN]), COLUMNS, 1, 0.7)
    return _shown(name) + (f" (did you mean {guess[0]!r}?)" if guess else "")


def _shown(cell: str) -> str:
    return repr(cell if len(cell) <= MAX_SHOWN else f"{cell[:MAX_SHOWN]}...")


def _separator(text: str) -> str:
    """Return the separator with which the first line has the most known columns."""
    heading = next((line for line in StringIO(text, newline="") if line.strip(f'{SEPARATORS}" \r\n')), "")
    known = {one: sum(column(cell.strip('" \r\n')) in COLUMNS for cell in heading.split(one)) for one in SEPARATORS}
    return max(SEPARATORS, key=known.__getitem__)  # the first of equals: a comma


def _fault_of_headings(cells: list[str], names: list[str]) -> str:
    faults = [unknown(filter(None, cells))]
    if "video" not in names:
        faults.insert(0, "there is no column 'video'")
    if twice := next((name for name in COLUMNS if names.count(name) > 1), ""):
        faults.append(f"the column {twice!r} is there twice; remove one")
    return "; ".join(filter(None, faults))


def _values(names: list[str], cells: list[str]) -> Values | str:
    """Return the values of a row; of known columns only, because the others are faults of the headings."""
    values: Values = {}
    for i, cell in enumerate(cells):
        name = names[i] if i < len(names) else ""
        if cell and not name:
            return f"the cell {_shown(cell)} has no heading; name its column in the first line, or empty it"
        if name in _INTEGERS and _GROUPED.fullmatch(cell):
            return f"{name} is {_shown(cell)}; write the number without separators of thousands"
        if name in _INTEGERS and _ROUNDED.fullmatch(cell):
            return f"{name} is {_shown(cell)}, which a spreadsheet rounded; enter it again in a cell of the format text"
        if cell and name in COLUMNS:
            values[name] = _with_decimal_points(cell) if name in _FLOATS else cell
    return values


def _with_decimal_points(numbers: str) -> str:
    """Write numbers such as `3,5`, as in many countries, with points."""
    return re.sub(r"(?<![\d.,])(\d*),(\d+)(?![\d.,])", r"\1.\2", numbers)
