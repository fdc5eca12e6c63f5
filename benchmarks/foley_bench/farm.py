"""`foley-bench farm`: throughput of the render farm, compared with an SDK loop, by workers and by Ray nodes."""

import importlib.util
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from rich.table import Table

from foley.bundle import Bundle
from foley.envelope import samples
from foley.media import probe
from foley_bench import machine
from foley_bench.measurement import interleave, wall_clock
from foley_bench.ray_nodes import ray_cluster
from foley_bench.report import Report, lines, table
from foley_bench.small_video import write_manifest
from foley_client.embedded import embedded_triton
from foley_client.render import manifest
from foley_client.render.engine import Engine, Threads
from foley_client.render.farm import render_all
from foley_client.render.row import Row
from foley_client.render.server import Server
from foley_client.render.storage import Output
from foley_pipeline.request import EnvelopeInput
from foley_pipeline.triton_backend import TritonBackend

BLOCK_ROWS = 10  # rows that one side renders before the other one does
WORKERS = (1, 2, 4)
NODE_WORKERS = 2
STEPS = 25  # the bundle's own


def measure(bundle: Bundle, folder: Path, rows: int, ray: bool, log: Callable[[str], None]) -> Report:
    """Render `rows` rows on each side; `folder` must be empty."""
    all_rows = [row.model_copy(update={"steps": STEPS}) for row in manifest.read(write_manifest(folder, rows))]
    document: dict[str, Any] = {**machine.describe(bundle), "settings": {"rows": rows, "steps": STEPS}}
    with embedded_triton(bundle.root) as triton:
        backend = TritonBackend(triton)
        log("SDK loop and farm, interleaved")
        document["one_worker"] = _overhead(backend, all_rows, folder)
        log(f"farm time / loop time: {document['one_worker']['farm_to_loop']:.3f}")
        document["rows_per_minute"] = {}
        for workers in WORKERS:
            with _threads(triton.url, folder / f"{workers}", workers) as engine:
                rate = _rate(engine, all_rows)
            log(f"{workers} concurrent rows: {rate:.1f} rows per minute")
            document["rows_per_minute"][str(workers)] = rate
    if ray:
        document["nodes"] = _nodes(bundle, folder, all_rows, log)
    return Report(
        title=f"Render farm: {bundle.manifest.name}",
        description="Rows of 1.5 s are the worst case, because the farm's overhead per row is constant. The loop "
        "calls the SDK and writes the same files sequentially, on the same Triton.",
        document=document,
        tables=_tables(document),
        pictures={
            "Rows per minute by number of concurrent rows on one server.": lines(
                WORKERS, {"": list(document["rows_per_minute"].values())}, "concurrent rows", "rows per minute"
            )
        },
    )


def _overhead(backend: TritonBackend, rows: Sequence[Row], folder: Path) -> dict[str, float]:
    """Render the same rows on both sides, interleaved in blocks."""
    (folder / "loop").mkdir()
    # a block has its own envelopes: neither side profits from those of other blocks
    flat = [row.model_copy(update={"output": row.output.replace("/", "-")}) for row in rows]
    blocks = [flat[start:][:BLOCK_ROWS] for start in range(0, len(rows) - BLOCK_ROWS + 1, BLOCK_ROWS)]
    for_loop, for_farm = iter(blocks), iter(blocks)
    with _threads(backend.triton.url, folder / "farm", 1) as engine:
        sides: dict[str, Callable[[], float]] = {
            "loop": lambda: wall_clock(partial(_loop, backend, next(for_loop), folder / "loop")),
            "farm": lambda: wall_clock(partial(_render, engine, next(for_farm))),
        }
        loop_s, farm_s = interleave(sides, len(blocks)).values()
    ratios = [farm / loop for farm, loop in zip(farm_s, loop_s, strict=True)]
    return {
        "loop_rows_per_minute": 60 * BLOCK_ROWS * len(loop_s) / sum(loop_s),
        "farm_rows_per_minute": 60 * BLOCK_ROWS * len(farm_s) / sum(farm_s),
        "farm_to_loop": sum(farm_s) / sum(loop_s),
        "farm_to_loop_median": median(ratios),
    }


def _loop(backend: TritonBackend, rows: Sequence[Row], folder: Path) -> None:
    """Render with the loop that a user would write without the farm; envelopes are reused per video."""
    envelopes: dict[str, EnvelopeInput] = {}
    for row in rows:
        video = Path(row.video)
        request = replace(row.request(video, None), envelope=envelopes.get(row.video))
        result = backend.generate(request)
        if row.video not in envelopes:
            envelopes[row.video] = EnvelopeInput(result.envelope, samples(probe(video).duration_s))
        result.save(folder / row.output, source_audio=row.source_audio, sound=row.sound)


def _nodes(bundle: Bundle, folder: Path, rows: Sequence[Row], log: Callable[[str], None]) -> dict[str, Any]:
    """Return rows per minute on Ray's test cluster with one and with two one-core nodes."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    rates = {}
    for count in (1, 2):
        with ray_cluster(cores[:count]) as address:
            from foley_client.render.ray_engine import cluster

            output = str(folder / f"{count}-nodes")
            with cluster(address, [], bundle.root.absolute(), None, output, NODE_WORKERS) as engine:
                while len(engine.workers()) < count:
                    time.sleep(0.2)
                rates[str(count)] = _rate(engine, rows)
        log(f"{count} Ray nodes: {rates[str(count)]:.1f} rows per minute")
    return {"rows_per_minute": rates, "two_to_one": rates["2"] / rates["1"]}


@contextmanager
def _threads(url: str, folder: Path, workers: int) -> Iterator[Threads]:
    scratch = folder.parent / f"{folder.name}-scratch"
    scratch.mkdir()
    engine = Threads({url: Server(url, None, None, Output(str(folder), scratch), scratch)}, workers)
    try:
        yield engine
    finally:
        engine.close()


def _rate(engine: Engine, rows: Sequence[Row]) -> float:
    """Return rows per minute, after as many warm-up rows as the engine renders concurrently."""
    slots = sum(engine.workers().values())
    _render(engine, [row.model_copy(update={"output": f"warm-{i}.wav"}) for i, row in enumerate(rows[:slots])])
    return 60 * len(rows) / wall_clock(partial(_render, engine, rows))


def _render(engine: Engine, rows: Sequence[Row]) -> None:
    for event in render_all(rows, engine):
        if event.kind in ("retry", "failed"):
            raise RuntimeError(f"{event.row.output}: {event.outcome}")


def _tables(document: dict[str, Any]) -> list[Table]:
    one, rates = document["one_worker"], document["rows_per_minute"]
    tables = [
        table(
            "Overhead of the farm",
            ["sequential", "rows per minute", "time / loop"],
            [
                ["SDK loop", f"{one['loop_rows_per_minute']:.1f}", "1.000"],
                ["farm, one worker", f"{one['farm_rows_per_minute']:.1f}", f"{one['farm_to_loop']:.3f}"],
            ],
        ),
        _rates("One server", "concurrent rows", rates),
    ]
    if "nodes" in document:
        tables.append(_rates("Ray", "one-core nodes", document["nodes"]["rows_per_minute"]))
    return tables


def _rates(title: str, heading: str, rates: Mapping[str, float]) -> Table:
    rows = [[count, f"{rate:.1f}", f"{rate / rates['1']:.2f}"] for count, rate in rates.items()]
    return table(title, [heading, "rows per minute", "ratio to 1"], rows)


def has_ray() -> bool:
    """Whether Ray is installed."""
    return importlib.util.find_spec("ray") is not None
