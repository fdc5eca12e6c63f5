"""Run the test harnesses at full length on real servers. The exit code is 1 if a guarantee is violated."""

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Annotated

import typer

from foley import command
from foley_client.embedded import embedded_triton
from harness.api_server import api_server
from harness.chaos import chaos as run_chaos
from harness.cluster import StoreKind
from harness.fuzz import fuzz as run_fuzz
from harness.load import load as run_load
from harness.soak import soak as run_soak

TINY = Path(__file__).resolve().parents[2] / "bundles" / "tiny"

app = typer.Typer(help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False)

Bundle = Annotated[Path, typer.Option(help="Folder of a small bundle.", envvar="FOLEY_BUNDLE")]


@app.command()
def soak(
    bundle: Bundle = TINY,
    store: Annotated[
        StoreKind, typer.Option(help="postgres, with media in an S3 bucket; or a shared sqlite file and folder.")
    ] = "postgres",
    count: Annotated[int, typer.Option(help="Generations in all.", min=40)] = 500,
    seed: Annotated[int, typer.Option(help="Seed of the requests and of the faults.", min=0)] = 0,
) -> None:
    """Run many generations on two APIs and two Tritons while callers cancel or crash and processes are killed."""
    folder = Path(mkdtemp(prefix="foley-soak-"))
    outcome = run_soak(bundle, folder, store, count, seed, typer.echo)
    if outcome.faults:
        typer.echo(f"logs: {folder}")
    else:
        shutil.rmtree(folder)
    typer.echo(outcome.table())
    _conclude(outcome.faults)


@app.command()
def load(
    bundle: Bundle = TINY,
    bad: Annotated[int, typer.Option(help="Connections that are idle, slow, or not read.", min=1)] = 950,
    ordinary: Annotated[int, typer.Option(help="Connections that make the measured calls, in turn.", min=1)] = 50,
    calls: Annotated[int, typer.Option(help="Calls of each method to each API.", min=1)] = 200,
) -> None:
    """Measure the latency of two APIs for ordinary clients, one of which has many bad connections, too."""
    with (
        TemporaryDirectory(prefix="foley-load-") as loaded,
        TemporaryDirectory(prefix="foley-load-") as quiet,
        embedded_triton(bundle) as triton,
        api_server(Path(loaded), triton=triton.url) as first,
        api_server(Path(quiet), triton=triton.url) as second,
    ):
        outcome = run_load(first, second, bad, ordinary, calls)
    typer.echo(outcome.table())
    _conclude(outcome.errors)


@app.command()
def chaos(
    bundle: Bundle = TINY,
    rows: Annotated[int, typer.Option(help="Rows to render.", min=10)] = 1_000,
    kills: Annotated[int, typer.Option(help="Processes to kill: driver, worker, Triton, in turn.", min=0)] = 18,
    ray: Annotated[bool, typer.Option(help="Render on a Ray cluster of this machine.")] = True,
    seed: Annotated[int, typer.Option(help="Seed of the moments at which processes are killed.", min=0)] = 0,
) -> None:
    """Render a manifest while processes are killed, render it again without kills, and compare the results."""
    with TemporaryDirectory(prefix="foley-chaos-") as folder:
        outcome = run_chaos(bundle, Path(folder), rows, kills, seed, ray, typer.echo)
    typer.echo(
        f"{rows} rows in {outcome.runs} runs and {outcome.seconds:.0f} s; undisturbed {outcome.undisturbed_s:.0f} s"
    )
    typer.echo("killed: " + (", ".join(f"{number} {name}" for name, number in outcome.kills.items()) or "nothing"))
    _conclude(outcome.faults)


@app.command()
def fuzz(
    bundle: Bundle = TINY,
    count: Annotated[int, typer.Option(help="Damaged media files and malformed requests.", min=200)] = 2_000,
    seed: Annotated[int, typer.Option(help="Number of the first case; a fault names its case.", min=0)] = 0,
) -> None:
    """Send damaged media and malformed requests to a real API server."""
    with TemporaryDirectory(prefix="foley-fuzz-") as name, api_server(Path(name), bundle=bundle) as server:
        outcome = run_fuzz(server, Path(name), count, seed, typer.echo)
    for (kind, code), number in sorted(outcome.codes.items()):
        typer.echo(f"{number:6} {kind}: {code}")
    _conclude(outcome.faults)


def _conclude(faults: list[str]) -> None:
    for fault in faults:
        typer.echo(f"FAULT: {fault}")
    if faults:
        raise typer.Exit(1)
    typer.echo("no faults")


if __name__ == "__main__":
    command.run(app)
