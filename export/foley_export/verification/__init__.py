"""`foley-export verify`: compares this project's results with those of the official implementation."""

from pathlib import Path

from rich.progress import BarColumn, TextColumn, TimeElapsedColumn

from foley.bars import Bars
from foley.bundle import Half
from foley.errors import FoleyError
from foley_export.verification import prompts, report, sound, tables, video
from foley_export.verification.check import Check
from foley_export.verification.comparison import Result
from foley_export.verification.vectors import Vectors

CHECKS: tuple[Check, ...] = (*tables.CHECKS, *video.CHECKS, *prompts.CHECKS, *sound.CHECKS)
"""Cheap checks first, then the networks in pipeline order."""


def verify(reference: Path | None, salt: str, onnx: bool, half: Half | None = None) -> None:
    """Run all `CHECKS` against the golden vectors and print the results.

    Args:
        reference: Folder that holds `vectors/`; None: `../shared/reference` beside the checkout.
        salt: Salt of the seeded weights, as used when the vectors were made (see `foley_export.weights`).
        onnx: Also check the exported graphs.
        half: Also check the graphs in this precision.

    Raises:
        InvalidInput: If the vectors are missing.
        FoleyError: If any comparison fails.
    """
    vectors = Vectors(reference)
    results: list[Result] = []
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Bars(*columns) as progress:
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
        raise FoleyError(f"{len(failed)} of {len(results)} comparisons failed; see {modules} in the table")
