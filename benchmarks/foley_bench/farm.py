"""The render farm's rate: against calling the client in a loop, by rows at once, and on one node of Ray or two."""

import importlib.util
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib.figure import Figure
from rich.table import Table

from foley.bundle import Bundle
from foley.envelope import samples
from foley.media import probe
from foley.output import replacing
from foley_bench import machine
from foley_bench.ray_nodes import ray_cluster
from foley_bench.report import Report
from foley_bench.small_video import write_manifest
from foley_client import Foley, embedded_triton, outputs
from foley_client.outputs import Result
from foley_client.render import manifest
from foley_client.render.engine import Engine, Threads
from foley_client.render.farm import render_all
from foley_client.render.place import Output
from foley_client.render.row import Row
from foley_client.render.server import Server
from foley_pipeline.job import Curve, run
from foley_pipeline.watch import Watch

BLOCK = 10  # rows that one way renders before the other way does
WORKERS = (1, 2, 4)
NODE_WORKERS = 2
STEPS = 25  # the bundle's own


def measure(bundle: Bundle, folder: Path, rows: int, ray: bool, say: Callable[[str], None]) -> Report:
    """Render `rows` rows each way, in an empty folder."""
    all_rows = [row.model_copy(update={"steps": STEPS}) for row in manifest.read(write_manifest(folder, rows))]
    document: dict[str, Any] = {**machine.describe(bundle), "settings": {"rows": rows, "steps": STEPS}}
    with embedded_triton(bundle.root) as triton:
        foley = Foley(triton)
        say("in a loop, and by the farm, in turns")
        document["one_worker"] = _overhead(foley, all_rows, folder)
        say(f"the farm takes {document['one_worker']['farm_to_loop']:.3f} of the loop's time")
        document["rows_per_minute"] = {}
        for workers in WORKERS:
            with _threads(triton.url, folder / f"{workers}", workers) as engine:
                rate = _rate(engine, all_rows)
            say(f"{workers} at once: {rate:.1f} rows a minute")
            document["rows_per_minute"][str(workers)] = rate
    if ray:
        document["nodes"] = _nodes(bundle, folder, all_rows, say)
    return Report(
        title=f"Render farm: {bundle.manifest.name}",
        lead="Small rows, of a second and a half, are the hardest case: what the farm adds to a row does not grow with "
        "it. The loop calls the SDK and writes the same files, one after the other, on the same Triton.",
        document=document,
        tables=_tables(document),
        pictures={"Rows a minute by the rows at once on one server.": _picture(document)},
    )


def _overhead(foley: Foley, rows: Sequence[Row], folder: Path) -> dict[str, float]:
    """The same rows both ways, in turns, so that what else the machine does meets both."""
    loop_s, farm_s = [], []
    (folder / "loop").mkdir()
    with _threads(foley.triton.url, folder / "farm", 1) as engine:
        for start in range(0, len(rows) - BLOCK + 1, BLOCK):
            # each for itself, so that neither profits from an envelope that the other's rows share
            block = [row.model_copy(update={"output": row.output.replace("/", "-")}) for row in rows[start:][:BLOCK]]
            began = time.perf_counter()
            _loop(foley, block, folder / "loop")
            loop_s.append(time.perf_counter() - began)
            began = time.perf_counter()
            _consume(engine, block)
            farm_s.append(time.perf_counter() - began)
    ratios = [farm / loop for farm, loop in zip(farm_s, loop_s, strict=True)]
    return {
        "loop_rows_per_minute": 60 * BLOCK * len(loop_s) / sum(loop_s),
        "farm_rows_per_minute": 60 * BLOCK * len(farm_s) / sum(farm_s),
        "farm_to_loop": sum(farm_s) / sum(loop_s),
        "farm_to_loop_median": median(ratios),
    }


def _loop(foley: Foley, rows: Sequence[Row], folder: Path) -> None:
    """What a user would write without the farm: an envelope a video, then a sound a row."""
    envelopes: dict[str, Any] = {}
    for row in rows:
        video = Path(row.video)
        job = row.job(video, None)
        if row.video in envelopes:
            job = replace(job, source=envelopes[row.video])
        sound = run(foley, job, Watch())
        if row.video not in envelopes:
            envelopes[row.video] = Curve(sound.envelope, samples(probe(video).duration_s))
        with replacing(folder / row.output) as path:
            outputs.write(path, Result(video, sound.envelope, sound.takes[0], row.source_audio))


def _nodes(bundle: Bundle, folder: Path, rows: Sequence[Row], say: Callable[[str], None]) -> dict[str, Any]:
    """Rows a minute on Ray's test cluster, of one node of one core, and of two."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    rates = {}
    for count in (1, 2):
        with ray_cluster(cores[:count]) as address:
            from foley_client.render.ray_engine import cluster

            output = str(folder / f"{count}-nodes")
            with cluster(address, [], bundle.root.absolute(), None, output, NODE_WORKERS) as engine:
                while len(engine.places()) < count:
                    time.sleep(0.2)
                rates[str(count)] = _rate(engine, rows)
        say(f"Ray, nodes of one core: {count}: {rates[str(count)]:.1f} rows a minute")
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
    """Rows a minute, once as many as there is room for have warmed it up."""
    room = sum(engine.places().values())
    _consume(engine, [row.model_copy(update={"output": f"warm-{i}.wav"}) for i, row in enumerate(rows[:room])])
    began = time.perf_counter()
    _consume(engine, rows)
    return 60 * len(rows) / (time.perf_counter() - began)


def _consume(engine: Engine, rows: Sequence[Row]) -> None:
    for event in render_all(rows, engine):
        if event.kind in ("retry", "failed"):
            raise RuntimeError(f"{event.row.output}: {event.outcome}")


def _tables(document: dict[str, Any]) -> list[Table]:
    one = document["one_worker"]
    overhead = Table("one row after the other", "rows a minute", "time, to the loop's", title="What the farm adds")
    overhead.add_row("the client in a loop", f"{one['loop_rows_per_minute']:.1f}", "1.000")
    overhead.add_row("the farm, one worker", f"{one['farm_rows_per_minute']:.1f}", f"{one['farm_to_loop']:.3f}")
    rates = Table("rows at once", "rows a minute", "to one at once", title="One server")
    first = document["rows_per_minute"]["1"]
    for workers, rate in document["rows_per_minute"].items():
        rates.add_row(workers, f"{rate:.1f}", f"{rate / first:.2f}")
    tables = [overhead, rates]
    if "nodes" in document:
        nodes = Table("nodes of one core", "rows a minute", "to one node", title="Ray")
        for count, rate in document["nodes"]["rows_per_minute"].items():
            nodes.add_row(count, f"{rate:.1f}", f"{rate / document['nodes']['rows_per_minute']['1']:.2f}")
        tables.append(nodes)
    for table in tables:
        for column in table.columns[1:]:
            column.justify = "right"
    return tables


def _picture(document: dict[str, Any]) -> Figure:
    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    rates = document["rows_per_minute"]
    axes.bar(list(rates), list(rates.values()), color="#2ec4b6")
    axes.set(xlabel="rows at once", ylabel="rows a minute")
    return figure


def has_ray() -> bool:
    """Whether Ray is installed here."""
    return importlib.util.find_spec("ray") is not None
