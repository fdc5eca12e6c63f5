"""What a run has found, three ways: tables in the terminal, JSON, and a page with plots that needs no other file."""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from foley.output import check_destination, replacing

WIDE = 160  # columns of a table that no terminal shows
TEMPLATE = Path(__file__).with_name("report.html")


@dataclass(frozen=True)
class Report:
    """One run.

    Attributes:
        title: what was measured, in a few words.
        lead: how, and how to read it: a paragraph.
        document: for JSON; `foley_bench.machine.describe`, `settings`, and figures whose names end in their units.
        tables: plain text in their cells.
        pictures: plots by their captions.
    """

    title: str
    lead: str
    document: Mapping[str, Any]
    tables: Sequence[Table]
    pictures: Mapping[str, Figure]


def prepare(json_file: Path | None, report_file: Path | None) -> None:
    """Find out before the long work whether its results can be written.

    Raises:
        OutputError: they cannot.
    """
    if json_file is not None:
        check_destination(json_file, {".json"})
    if report_file is not None:
        check_destination(report_file, {".html"})


def deliver(report: Report, json_file: Path | None, report_file: Path | None) -> None:
    """Print the tables, and write the files that are asked for.

    Raises:
        OutputError: a file cannot be written.
    """
    show([*report.tables, about(report.document)])
    write_json(json_file, report.document)
    if report_file is not None:
        with replacing(report_file) as temporary:
            temporary.write_text(page(report), "utf-8")


def show(parts: Sequence[Table | str]) -> None:
    """Print tables, and text between them, to standard output."""
    console = Console()
    if not console.is_terminal:
        console.width = WIDE  # a file has no edge; 80 columns would cut figures off
    console.print(*parts, sep="\n")


def write_json(destination: Path | None, document: Mapping[str, Any]) -> None:
    """Write a document whose numbers are all finite, if there is a file for it."""
    if destination is not None:
        with replacing(destination) as temporary:
            temporary.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n")


def page(report: Report) -> str:
    """The report as HTML; text that holds markup stays text."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(TEMPLATE.read_text("utf-8")).render(
        report=report,
        rows=lambda table: list(zip(*(column.cells for column in table.columns), strict=True)),
        pictures={caption: _svg(figure) for caption, figure in report.pictures.items()},
        about=about(report.document),
    )


def about(document: Mapping[str, Any]) -> str:
    """On what a run was made, in a sentence or two."""
    machine, bundle = document["machine"], document["bundle"]
    versions = ", ".join(f"{name} {version}" for name, version in document["versions"].items() if version)
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_bytes'] / 2**30:.0f} GiB. "
        f"Bundle {bundle['name']} ({bundle['digest'][:12]}), commit {(document['commit'] or 'unknown')[:12]}, "
        f"{document['date']}. {versions}."
    )


def _svg(figure: Figure) -> str:
    """A plot as the address of an image that lies in the address itself."""
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(file.getvalue()).decode()
