"""The table of half-precision errors of every network."""

from collections.abc import Iterable

from rich import box
from rich.console import Console
from rich.table import Table

from foley.bundle import Precision
from foley_export.rounding import HalfError


def show(precision: Precision, errors: Iterable[tuple[str, HalfError]]) -> None:
    """Print one row per network output to standard output."""
    table = Table(box=box.SIMPLE, title=f"{precision} compared with fp32, on random inputs")
    for heading in ("network", "output"):
        table.add_column(heading)
    for heading in ("relative L2", "largest value", "headroom"):
        table.add_column(heading, justify="right")
    for network, error in errors:
        for output, relative in error.relative.items():
            table.add_row(network, output, f"{relative:.1e}", f"{error.peak:.3g}", f"{error.headroom:.1e}")
    Console().print(table)
