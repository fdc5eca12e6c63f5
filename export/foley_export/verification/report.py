"""The table that `foley-export verify` prints."""

import math
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from foley_export.verification.comparison import Result

_WIDTH = 132  # columns; no terminal width when redirected


def show(results: Sequence[Result], unread: Sequence[str]) -> None:
    """Print one row per result to standard output, followed by the names of the `unread` arrays."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH)
    table = Table(box=box.SIMPLE)
    for heading in ("module", "compared", "run by"):
        table.add_column(heading)
    for heading in ("largest error", "relative L2", "tolerance"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for result in results:
        verdict = "pass" if result.passed else "[bold red]FAIL[/]"
        what = result.what if not result.problem else f"{result.what}: {result.problem}"
        errors = ("", "") if result.problem else (_short(result.absolute), _short(result.relative))
        table.add_row(escape(result.module), escape(what), result.engine, *errors, result.tolerance, verdict)
    console.print(table)
    if unread:
        console.print(f"not checked: {escape(', '.join(unread))}")


def _short(error: float) -> str:
    if math.isnan(error):
        return ""
    return f"{error:.1e}" if error else "0"
