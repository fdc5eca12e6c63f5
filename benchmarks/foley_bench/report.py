"""Reports of a run: tables in the terminal, JSON, and a self-contained HTML page with plots."""

import base64
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table

from foley.output import check_destination, replacing

REDIRECTED_WIDTH = 160  # columns where output is redirected
TEMPLATE = Path(__file__).with_name("report.html")


@dataclass(frozen=True)
class Report:
    """The results of one run.

    Attributes:
        title: What was measured, in a few words.
        description: A paragraph on how it was measured and how to read it.
        document: For JSON; `foley_bench.machine.describe`, `settings`, and figures whose names end in their units.
        tables: Tables whose cells are plain text.
        pictures: Plots by their captions.
    """

    title: str
    description: str
    document: Mapping[str, Any]
    tables: Sequence[Table]
    pictures: Mapping[str, Figure]


def table(title: str, headings: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "") -> Table:
    """Return a table whose first column is left-aligned and whose other columns are right-aligned."""
    result = Table(box=box.SIMPLE_HEAD, title=title, caption=caption or None, caption_justify="left")
    for i, heading in enumerate(headings):
        result.add_column(heading, justify="right" if i else "left", no_wrap=not i, vertical="bottom")
    for row in rows:
        result.add_row(*row)
    return result


def format_ms(timing: Mapping[str, float]) -> str:
    """Format a timing as median ± half the interquartile range, in ms."""
    return f"{1e3 * timing['median_s']:.1f} ± {500 * timing['iqr_s']:.1f}"


def stacked_bars(parts: Mapping[str, Sequence[float]], bars: Sequence[str], unit: str) -> Figure:
    """Return a plot with one horizontal bar for each of `bars`, stacked from `parts`."""
    figure = Figure(figsize=(9, 1.5 + 0.5 * len(bars)), layout="constrained")
    axes = figure.subplots()
    ends = [0.0] * len(bars)
    for name, lengths in parts.items():
        axes.barh(list(bars), lengths, left=ends, label=name, edgecolor="white")
        ends = [end + length for end, length in zip(ends, lengths, strict=True)]
    axes.invert_yaxis()
    axes.set(xlabel=unit, xlim=(0, None))
    if len(parts) > 1:
        figure.legend(loc="outside right upper", frameon=False)
    return figure


def lines(
    x: Sequence[float], series: Mapping[str, Sequence[float]], x_label: str, y_label: str, log_x: bool = False
) -> Figure:
    """Return a plot with one line for each of `series` over `x`."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    for name, values in series.items():
        axes.plot(x, values, "o-", label=name)
    axes.set(xlabel=x_label, ylabel=y_label, ylim=(0, None), xscale="log" if log_x else "linear")
    axes.legend(frameon=False)
    return figure


def check_outputs(json_file: Path | None, report_file: Path | None) -> None:
    """Check before a long run that its results can be written.

    Raises:
        OutputError: If they cannot.
    """
    if json_file is not None:
        check_destination(json_file, {".json"})
    if report_file is not None:
        check_destination(report_file, {".html"})


def write(report: Report, json_file: Path | None, report_file: Path | None) -> None:
    """Print the tables and write the requested files.

    Raises:
        OutputError: If a file cannot be written.
    """
    print_tables([*report.tables, describe_run(report.document)])
    write_json(json_file, report.document)
    if report_file is not None:
        with replacing(report_file) as temporary:
            temporary.write_text(render_html(report), "utf-8")


def print_tables(parts: Sequence[Table | str]) -> None:
    """Print tables and text to standard output."""
    console = Console()
    if not console.is_terminal:
        console.width = REDIRECTED_WIDTH  # no terminal width when redirected; 80 columns would cut figures off
    console.print(*parts, sep="\n")


def write_json(destination: Path | None, document: Mapping[str, Any]) -> None:
    """Write a document with finite numbers only to `destination`; do nothing if it is None."""
    if destination is not None:
        with replacing(destination) as temporary:
            temporary.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n")


def render_html(report: Report) -> str:
    """Return the report as HTML; text is escaped."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(TEMPLATE.read_text("utf-8")).render(
        report=report,
        rows=lambda table: list(zip(*(column.cells for column in table.columns), strict=True)),
        pictures={caption: _svg(figure) for caption, figure in report.pictures.items()},
        run=describe_run(report.document),
    )


def describe_run(document: Mapping[str, Any]) -> str:
    """Describe the machine, bundle, commit and versions of a run."""
    machine, bundle = document["machine"], document["bundle"]
    versions = ", ".join(f"{name} {version}" for name, version in document["versions"].items() if version)
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_bytes'] / 2**30:.0f} GiB. "
        f"Bundle {bundle['name']} ({bundle['digest'][:12]}), commit {(document['commit'] or 'unknown')[:12]}, "
        f"{document['date']}. {versions}."
    )


def _svg(figure: Figure) -> str:
    """Return a plot as a data URL."""
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(file.getvalue()).decode()
