"""HTML report of a render: throughput, time of each stage, failures, and a player and a plot for every result."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

import numpy as np

from foley import clip
from foley.sound_file import SOUND_EXTENSIONS
from foley_client.render.progress import RenderStats, clock
from foley_client.render.row import Row
from foley_client.render.storage import REPORT, Output
from foley_client.render.task import sidecar

PAGE = 100  # results per page
_WIDTH, _HEIGHT = 320, 60  # of a plot, in pixels
_READERS = 16  # threads, because reads from a bucket have a high latency


def write(output: Output, rows: Sequence[Row], stats: RenderStats) -> None:
    """Write `report.html`, and `report-2.html` and so on if there are more than `PAGE` results.

    Raises:
        OutputError: A sidecar cannot be read, or the report cannot be written.
    """
    from jinja2 import Environment, StrictUndefined  # extra `render`

    template = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).from_string(files("foley_client.render").joinpath("report.html").read_text("utf-8"))
    names = [REPORT, *(f"report-{i + 2}.html" for i in range((len(rows) - 1) // PAGE))]
    with ThreadPoolExecutor(_READERS) as pool:
        for i, name in enumerate(names):
            page = rows[i * PAGE : (i + 1) * PAGE]
            results = pool.map(lambda row: _result(row, sidecar(output, row.output)), page)
            html = template.render(
                stats=stats, clock=clock, first=i == 0, pages=names, page=name, results=list(results)
            )
            with output.writing(name) as path:
                path.write_text(html, encoding="utf-8")


def _result(row: Row, record: dict[str, Any] | None) -> dict[str, Any]:
    """Return the template variables of a row; `curves` is None if the row is not rendered."""
    variables = {
        "name": row.output,
        "url": quote(row.output),
        "is_sound": PurePosixPath(row.output).suffix.lower() in SOUND_EXTENSIONS,
        "text": row.text or (PurePosixPath(row.audio).name if row.audio else ""),
        "seed": row.seed,
    }
    if record is None:
        return {**variables, "curves": None, "notes": []}
    curves = [np.asarray(record.get(name) or [0.0], np.float32) for name in ("envelope", "produced")]
    top = max(0.01, *(float(curve.max()) for curve in curves))
    seconds = len(curves[0]) / clip.ENVELOPE_RATE_HZ
    return {
        **variables,
        "curves": [_polyline(curve / top) for curve in curves],
        "length": f"{seconds:.1f} s",
        "notes": record.get("notes") or [],
    }


def _polyline(curve: "np.ndarray[Any, Any]") -> str:
    """Return the SVG points of a curve with values in [0, 1]: the maximum in each column of pixels."""
    pieces = np.array_split(curve, min(_WIDTH, len(curve)))
    step = _WIDTH / max(1, len(pieces) - 1)
    return " ".join(f"{i * step:.1f},{_HEIGHT * (1 - float(piece.max())):.1f}" for i, piece in enumerate(pieces))
