"""Two runs of the same benchmark, figure by figure."""

import json
import math
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from foley.errors import SettingError

SAME = ("machine", "versions", "bundle", "settings")  # what two runs should share for their figures to compare
ABOUT = (*SAME, "commit", "date")

Figures = Mapping[tuple[str, ...], float]


def read(path: Path) -> Mapping[str, Any]:
    """A document that a run wrote with `--json`.

    Raises:
        SettingError: the file cannot be read, is no JSON, or something else.
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
    """Every finite number of a report by its path, without what describes the run."""
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
    """What the two runs do not share, one sentence each: their figures differ for that reason too."""
    for key in SAME:
        names = sorted(a[key].keys() | b[key].keys())
        pairs = {name: (a[key].get(name), b[key].get(name)) for name in names}
        if changed := [f"{name} {of_a} → {of_b}" for name, (of_a, of_b) in pairs.items() if of_a != of_b]:
            yield f"different {key}: {', '.join(changed)}"


def table(a: Mapping[str, Any], b: Mapping[str, Any]) -> Table:
    """The figures that both runs have, and B relative to A, a section for every stage.

    Raises:
        SettingError: they have none in common.
    """
    of_a, of_b = figures(a), figures(b)
    common = [path for path in of_a if path in of_b]
    if not common:
        raise SettingError("the two reports have no figure in common; give two of the same command")
    shown = Table(
        box=box.SIMPLE_HEAD,
        title="B relative to A",
        caption=f"A: {_origin(a)}. B: {_origin(b)}. Below 1: B has less of it. "
        f"{len(of_a.keys() ^ of_b.keys())} figures are only in one of them.",
        caption_justify="left",
    )
    shown.add_column("stage", no_wrap=True)
    shown.add_column("figure", no_wrap=True)
    for heading in ("A", "B", "B / A"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for stage, paths in groupby(common, key=_stage):
        shown.add_section()
        for i, path in enumerate(paths):
            values = of_a[path], of_b[path]
            cells = (*(f"{value:.4g}" for value in values), f"{ratio(*values):.3f}")
            shown.add_row(".".join(stage) if i == 0 else "", ".".join(path[len(stage) :]), *cells)
    return shown


def _stage(path: tuple[str, ...]) -> tuple[str, ...]:
    """The part of a figure's path that says what was measured."""
    return path[: min(2, len(path) - 1)]


def _origin(document: Mapping[str, Any]) -> str:
    return f"{document.get('date')}, commit {str(document.get('commit'))[:12]}"
