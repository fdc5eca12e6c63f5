"""The `foley render` command."""

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Annotated

import typer

from foley.container import Limits
from foley.errors import MediaError, SettingError
from foley.scratch import scratch_folder
from foley_client.console import console, working
from foley_client.extras import require
from foley_client.limits import MaxDuration, MaxPixels, NoLimits, limits_of
from foley_client.render import manifest, report, storage
from foley_client.render.engine import Engine, Threads
from foley_client.render.farm import render_all
from foley_client.render.progress import Display, JsonLines, RenderStats, clock
from foley_client.render.row import Row
from foley_client.render.server import Server
from foley_client.render.storage import FAILURES, REPORT, Output
from foley_client.render.task import Failed
from foley_pipeline import cache

WORKERS = 4
_CHECK_THREADS = 16  # threads that check inputs, which may be at URLs


def render(
    rows_of: Annotated[
        str,
        typer.Argument(
            metavar="MANIFEST",
            help="A table (.csv, .tsv, .txt), JSON Lines (.jsonl), or a folder of videos, except results of earlier "
            "renders. A row has a `video`, an `output` name (default: the name of the video, as .mp4), and any of: "
            + ", ".join(manifest.SETTINGS)
            + ".",
            show_default=False,
        ),
    ],
    output: Annotated[
        str, typer.Option("-o", "--output", help="Folder for the results, or a URL such as s3://BUCKET/FOLDER.")
    ],
    check: Annotated[
        bool, typer.Option("--check", help="Only validate the manifest and check that its inputs exist.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Also render rows whose results exist.")] = False,
    server: Annotated[
        list[str] | None,
        typer.Option(
            help="Triton server, HOST:PORT; can be repeated. Default: start one on this machine, or on every node of "
            "the cluster.",
            envvar="FOLEY_SERVER",
        ),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, max=256, help="Number of concurrent rows on each server.")] = WORKERS,
    ray: Annotated[
        str | None,
        typer.Option(
            "--ray",
            metavar="ADDRESS",
            help="Render on a Ray cluster: `auto` is the cluster of this machine, ray://HOST:10001 a remote one, and "
            "`local` starts one on this machine.",
        ),
    ] = None,
    bundle: Annotated[
        Path | None, typer.Option("--bundle", help="Bundle for the servers that are started.", show_default="demo")
    ] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Do not use cached envelopes and embeddings.")] = False,
    json_lines: Annotated[bool, typer.Option("--json", help="Print progress as JSON lines.")] = False,
    max_duration: MaxDuration = None,
    max_pixels: MaxPixels = None,
    no_limits: NoLimits = False,
) -> None:
    """Render many videos; run the same command again to resume.

    foley render clips.csv -o rendered/

    Results are written atomically, each with a sidecar NAME.foley.json that records its inputs and settings.

    Existing results with the same inputs, settings and versions are skipped.

    Failed rows are retried, then listed in failures.jsonl, and the exit code is 1.

    report.html shows and plays all results.
    """
    require("foley render", "render", "fsspec", "jinja2")
    if ray:
        require("--ray", "ray", "ray")
    if bundle and server:
        raise SettingError("--bundle applies only to servers that are started; omit --bundle or --server")
    limits = limits_of(max_duration, max_pixels, no_limits)
    with ExitStack() as stack:
        scratch = stack.enter_context(scratch_folder("foley-render-"))
        results = Output(output, scratch)
        rows = manifest.read(Path(rows_of), results, _say)
        _check_inputs(rows)
        if check:
            typer.echo(f"rows: {len(rows)}, errors: 0")
            return
        stats = RenderStats(len(rows))
        stack.enter_context(results.claimed([row.output for row in rows]))
        cache_folder = None if no_cache else cache.default_folder()
        with working("connecting to the servers" if server else "starting the servers"):
            engine = stack.enter_context(
                _engine(server or [], ray, bundle, cache_folder, output, results, scratch, workers, limits)
            )
        failures = _Failures(results)
        stack.callback(_conclude, results, rows, stats, failures)
        display: JsonLines | Display = JsonLines(stats) if json_lines else Display(stats)
        stack.enter_context(display)
        stats.start()
        for event in stack.enter_context(closing(render_all(rows, engine, force))):
            stats.add(event)
            display.on_event(event)
            if event.kind == "failed":
                failures.write(stats)
    if stats.counts["failed"]:
        raise typer.Exit(1)


def _say(sentence: str) -> None:
    console.print(sentence, markup=False, highlight=False, soft_wrap=True)


def _conclude(results: Output, rows: Sequence[Row], stats: RenderStats, failures: "_Failures") -> None:
    """Write the failures and the report, and print a summary. Called when the run ends for any reason."""
    failures.write(stats, last=True)
    report.write(results, rows, stats)
    counts = stats.counts
    _say(
        f"{counts['done']} rendered in {clock(stats.elapsed_s)}, {counts['skipped']} skipped, {counts['failed']} failed"
    )
    if stats.left:
        _say(f"stopped, rows left: {stats.left}; run the same command again to resume")
    if counts["failed"]:
        _say(f"see {results.url}/{FAILURES}; run the same command again to retry them")
    _say(f"{results.url}/{REPORT}")


class _Failures:
    """Writes `failures.jsonl`, the rows that failed in this run."""

    def __init__(self, results: Output) -> None:
        self._results = results
        self._results.remove(FAILURES)
        self._written = 0

    def write(self, stats: RenderStats, last: bool = False) -> None:
        """Rewrite the file if there are over 10 % more failures than at the last write; if `last`, any more."""
        count = len(stats.failures)
        if count <= self._written * (1.0 if last else 1.1):
            return
        self._written = count
        with self._results.writing(FAILURES) as path, path.open("w") as file:
            for event in stats.failures:
                assert isinstance(event.outcome, Failed)
                failure = {"error": event.outcome.kind, "reason": event.outcome.reason, "attempts": event.attempts}
                file.write(
                    json.dumps(failure | {"row": event.row.model_dump(mode="json", exclude_defaults=True)}) + "\n"
                )


def _check_inputs(rows: Sequence[Row]) -> None:
    """Check that all inputs exist.

    Raises:
        SettingError: Inputs do not exist or cannot be accessed; the message lists them.
    """
    inputs = sorted({file for row in rows for file in (row.video, row.audio, row.envelope) if file})

    def fault(url_or_path: str) -> str | None:
        try:
            return None if storage.exists(url_or_path) else f"{url_or_path} does not exist or is not a file"
        except MediaError as error:
            return str(error)

    with working(f"checking inputs: {len(inputs)}"), ThreadPoolExecutor(_CHECK_THREADS) as pool:
        manifest.refuse([found for found in pool.map(fault, inputs) if found], "inputs that cannot be read")


@contextmanager
def _engine(
    servers: Sequence[str],
    address: str | None,
    bundle: Path | None,
    cache_folder: Path | None,
    output: str,
    results: Output,
    scratch: Path,
    capacity: int,
    limits: Limits,
) -> Iterator[Engine]:
    if address is None:
        urls: dict[str, str | None] = {url: url for url in servers} or {"this machine": None}
        named = {name: Server(url, bundle, cache_folder, results, scratch, limits) for name, url in urls.items()}
        threads = Threads(named, capacity)
        with closing(threads):
            yield threads
        return
    from foley_client.render.ray_engine import cluster

    if not storage.is_url(output):
        output = str(Path(output).absolute())
    bundle = bundle.absolute() if bundle else None
    with cluster(address, servers, bundle, cache_folder, output, capacity, limits) as joined:
        yield joined
