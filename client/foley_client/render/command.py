"""The `foley render` command."""

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Annotated

import typer

from foley.errors import MediaError, SettingError
from foley.scratch import scratch_folder
from foley_client.console import console
from foley_client.extras import require
from foley_client.render import manifest, place, sheet
from foley_client.render.engine import Engine, Threads
from foley_client.render.farm import render_all
from foley_client.render.place import FAILURES, REPORT, Output
from foley_client.render.progress import Display, JsonLines, Tally, clock
from foley_client.render.row import Row
from foley_client.render.server import Server
from foley_client.render.task import Failed
from foley_pipeline import cache

WORKERS = 4
_LOOKERS = 16  # threads that check inputs, which may be at URLs


def render(
    rows_of: Annotated[
        str,
        typer.Argument(
            metavar="MANIFEST",
            help="A table (.csv), JSON Lines (.jsonl), or a folder of videos; results of renders in it are left "
            "out. A row has a `video`, an `output` name (the video's, as .mp4, where it is left out), and any of: "
            + ", ".join(manifest.SETTINGS)
            + ".",
            show_default=False,
        ),
    ],
    output: Annotated[
        str, typer.Option("-o", "--output", help="Folder for the results, or a URL such as s3://BUCKET/FOLDER.")
    ],
    check: Annotated[bool, typer.Option("--check", help="Only say what is wrong with the manifest.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Render what is there already, too.")] = False,
    server: Annotated[
        list[str] | None,
        typer.Option(
            help="A Triton to use, HOST:PORT; may be given several times. Without it one is started: here, or on "
            "every node of the cluster.",
            envvar="FOLEY_SERVER",
        ),
    ] = None,
    workers: Annotated[
        int, typer.Option(min=1, max=256, help="Rows at once on every server, to keep its batches full.")
    ] = WORKERS,
    ray: Annotated[
        str | None,
        typer.Option(
            "--ray",
            metavar="ADDRESS",
            help="Render on a Ray cluster: `auto` for the one that this machine is part of, ray://HOST:10001 for "
            "another, `local` for one that is started here.",
        ),
    ] = None,
    bundle: Annotated[
        Path | None, typer.Option("--bundle", help="Bundle that started servers serve.", show_default="demo")
    ] = None,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Make envelopes and embeddings anew that this machine has made before.")
    ] = False,
    json_lines: Annotated[bool, typer.Option("--json", help="Tell how far it is as JSON lines.")] = False,
) -> None:
    """Render many videos; run the same command again to resume.

    foley render clips.csv -o rendered/

    Results are written atomically, each with a sidecar NAME.foley.json that records its inputs and settings. Existing
    results with the same inputs, settings and versions are skipped. Failed rows are retried, then listed in
    failures.jsonl, and the exit code is 1. report.html shows and plays all results.
    """
    require("foley render", "render", "fsspec", "jinja2")
    if ray:
        require("--ray", "ray", "ray")
    if bundle and server:
        raise SettingError("--bundle is for servers that are started; leave out --bundle or --server")
    with ExitStack() as stack:
        scratch = stack.enter_context(scratch_folder("foley-render-"))
        results = Output(output, scratch)
        rows = manifest.read(Path(rows_of), results)
        _look_for_inputs(rows)
        if check:
            typer.echo(f"{len(rows)} rows, none of which is wrong")
            return
        tally = Tally(len(rows))
        stack.enter_context(results.claimed([row.output for row in rows]))
        kept = None if no_cache else cache.default_folder()
        with console.status("starting"):
            engine = stack.enter_context(_engine(server or [], ray, bundle, kept, output, results, scratch, workers))
        failures = _Failures(results)
        stack.callback(_conclude, results, rows, tally, failures)
        shown: JsonLines | Display = JsonLines(tally) if json_lines else Display(tally)
        stack.enter_context(shown)
        tally.start()
        for event in stack.enter_context(closing(render_all(rows, engine, force))):
            tally.add(event)
            shown.on_event(event)
            if event.kind == "failed":
                failures.write(tally)
    if tally.counts["failed"]:
        raise typer.Exit(1)


def _conclude(results: Output, rows: Sequence[Row], tally: Tally, failures: "_Failures") -> None:
    """Write the failures and the report, and print a summary. Called when the run ends for any reason."""
    failures.write(tally, last=True)
    sheet.write(results, rows, tally)
    counts = tally.counts
    console.print(
        f"{counts['done']} rendered in {clock(tally.elapsed_s)}, {counts['skipped']} were there already, "
        f"{counts['failed']} failed",
        highlight=False,
    )
    if tally.left:
        console.print(f"stopped with {tally.left} left; the same command goes on", highlight=False)
    if counts["failed"]:
        console.print(
            f"see {results.url}/{FAILURES}; the same command tries them again", highlight=False, soft_wrap=True
        )
    console.print(f"{results.url}/{REPORT}", highlight=False, soft_wrap=True)


class _Failures:
    """Writes `failures.jsonl`, the rows that failed in this run."""

    def __init__(self, results: Output) -> None:
        self._results = results
        self._results.remove(FAILURES)
        self._written = 0

    def write(self, tally: Tally, last: bool = False) -> None:
        """Rewrite the file if there are over 10 % more failures than at the last write; if `last`, any more."""
        count = len(tally.failures)
        if count <= self._written * (1.0 if last else 1.1):
            return
        self._written = count
        with self._results.writing(FAILURES) as path, path.open("w") as file:
            for event in tally.failures:
                assert isinstance(event.outcome, Failed)
                about = {"error": event.outcome.kind, "reason": event.outcome.reason, "attempts": event.attempts}
                file.write(json.dumps(about | {"row": event.row.model_dump(mode="json", exclude_defaults=True)}) + "\n")


def _look_for_inputs(rows: Sequence[Row]) -> None:
    """Check that all inputs exist.

    Raises:
        SettingError: Inputs do not exist or cannot be accessed; the message lists them.
    """
    inputs = sorted({one for row in rows for one in (row.video, row.audio, row.envelope) if one})

    def fault(one: str) -> str | None:
        try:
            return None if place.exists(one) else f"{one} is not there"
        except MediaError as error:
            return str(error)

    with console.status(f"looking for {len(inputs)} inputs"), ThreadPoolExecutor(_LOOKERS) as pool:
        manifest.refuse([found for found in pool.map(fault, inputs) if found], "inputs cannot be read")


@contextmanager
def _engine(
    servers: Sequence[str],
    address: str | None,
    bundle: Path | None,
    kept: Path | None,
    output: str,
    results: Output,
    scratch: Path,
    workers: int,
) -> Iterator[Engine]:
    if address is None:
        names = {url: Server(url, bundle, kept, results, scratch) for url in servers}
        threads = Threads(names or {"this machine": Server(None, bundle, kept, results, scratch)}, workers)
        with closing(threads):
            yield threads
        return
    from foley_client.render.ray_engine import cluster

    if not place.is_url(output):
        output = str(Path(output).absolute())
    with cluster(address, servers, bundle.absolute() if bundle else None, kept, output, workers) as joined:
        yield joined
