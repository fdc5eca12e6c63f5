"""`foley-export`: make bundles, and ONNX graphs from bundles."""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from foley import command
from foley_export import make
from foley_export.networks import NETWORKS
from foley_export.presets import PRESETS

app = typer.Typer(
    help="Make Video-Foley bundles: weights first (`init`), then ONNX graphs (`onnx`).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command()
def init(
    bundle: Annotated[Path, typer.Argument(help="Folder to make.")],
    preset: Annotated[Literal["paper", "tiny"], typer.Option(help="paper: the official sizes. tiny: for tests.")],
    seed: Annotated[int, typer.Option(help="Seed of the random weights.")] = 0,
) -> None:
    """Make a bundle with random weights. It makes noise, not yet sound: for trying, testing and timing."""
    _show("weights", make.init(PRESETS[preset], seed, bundle))


@app.command()
def onnx(bundle: Annotated[Path, typer.Argument(help="Folder of the bundle.")]) -> None:
    """Export every network of a bundle to ONNX, beside its weights; the weights are not copied."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns that torchvision is missing; nothing needs it
    _show("graph", make.make_graphs(bundle))


def _show(what: str, stages: Iterable[str]) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=len(NETWORKS))
        for done, stage in enumerate(stages):
            progress.update(task, completed=done, description=f"{what}: {stage}")


def main() -> None:
    """Entry point."""
    command.run(app)
