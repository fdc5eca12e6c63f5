"""`foley-export verify`: this project's numbers beside those of the official implementation."""

from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from foley.bundle import Half
from foley.errors import FoleyError
from foley_export.verification import prompts, report, sound, tables, video
from foley_export.verification.check import Check
from foley_export.verification.comparison import Result
from foley_export.verification.vectors import Vectors

CHECKS: tuple[Check, ...] = (*tables.CHECKS, *video.CHECKS, *prompts.CHECKS, *sound.CHECKS)
"""Cheap ones first, then in the order in which a clip meets the networks."""


def verify(reference: Path | None, salt: str, onnx: bool, half: Half | None = None) -> None:
    """Run all `CHECKS` against the vectors in `reference`, and print their results.

    Args:
        onnx, half: see `Check.run`.

    Raises:
        InvalidInput: there are no vectors.
        FoleyError: something differs.
    """
    vectors = Vectors(reference)
    results: list[Result] = []
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("verify", total=len(CHECKS))
        for check in CHECKS:
            progress.update(task, description=f"verify: {check.module}")
            for result in check.run(vectors, salt, onnx, half):
                results.append(result)
                progress.update(task, description=f"verify: {check.module}: {result.what} ({result.engine})")
            progress.advance(task)
    report.show(results, vectors.unread())
    failed = [result for result in results if not result.passed]
    if failed:
        modules = ", ".join(dict.fromkeys(result.module for result in failed))
        raise FoleyError(f"{len(failed)} of {len(results)} comparisons failed: look at {modules} in the table")
