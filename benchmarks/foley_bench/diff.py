"""`foley-bench diff`: two runs of the same benchmark, figure by figure."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from foley.errors import SettingError
from foley_bench import report

SAME = ("machine", "versions", "bundle", "settings")  # what two runs should share for their figures to compare
ABOUT = (*SAME, "commit", "date")

Figures = Mapping[tuple[str, ...], float]


def read(path: Path) -> Mapping[str, Any]:
    """Read a document that a run wrote with `--json`.

    Raises:
        SettingError: the file cannot be read or is not such a document.
    """
    try:
        document = json.loads(path.read_bytes(), parse_int=float)
    except OSError as error:
        raise SettingError(f"{path} cannot be read ({error.strerror}); give a file that --json wrote") from error
    except (ValueError, RecursionError) as error:
        raise SettingError(f"{path} is not JSON; give a file that --json wrote") from error
    if not isinstance(document, dict) or not all(isinstance(document.get(key), dict) for key in SAME):
        raise SettingError(f"{path} is no report of this program; give a file that --json wrote")
    return document


def figures(document: Mapping[str, Any]) -> Figures:
    """Every finite number of a report by its path, without the description of the run."""
    return dict(_leaves({key: value for key, value in document.items() if key not in ABOUT}, ()))


def _leaves(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], float]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, (*path, key))
    elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        yield path, float(value)


def ratio(a: float, b: float) -> float:
    """`b` relative to `a`: 1 where they are equal, infinite where only `a` is zero."""
    if a == b:
        return 1.0
    return b / a if a else math.copysign(math.inf, b)


def warnings(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[str]:
    """Yield one sentence for each difference of machine, versions, bundle or settings."""
    for key in SAME:
        names = sorted(a[key].keys() | b[key].keys())
        pairs = {name: (a[key].get(name), b[key].get(name)) for name in names}
        if changed := [f"{name} {of_a} → {of_b}" for name, (of_a, of_b) in pairs.items() if of_a != of_b]:
            yield f"different {key}: {', '.join(changed)}"


def table(a: Mapping[str, Any], b: Mapping[str, Any]) -> Table:
    """The figures that both runs have, and B relative to A.

    Raises:
        SettingError: they have none in common.
    """
    of_a, of_b = figures(a), figures(b)
    common = [path for path in of_a if path in of_b]
    if not common:
        raise SettingError("the two reports have no figure in common; give two of the same command")
    return report.table(
        "B relative to A",
        ["figure", "A", "B", "B / A"],
        [
            [".".join(path), f"{of_a[path]:.4g}", f"{of_b[path]:.4g}", f"{ratio(of_a[path], of_b[path]):.3f}"]
            for path in common
        ],
        f"A: {_origin(a)}. B: {_origin(b)}. {len(of_a.keys() ^ of_b.keys())} figures are only in one of them.",
    )


def _origin(document: Mapping[str, Any]) -> str:
    return f"{document.get('date')}, commit {str(document.get('commit'))[:12]}"
