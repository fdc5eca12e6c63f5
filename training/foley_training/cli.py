"""The `foley-train` command: trains the demo bundle's weights from scratch."""

import logging
from pathlib import Path
from typing import Annotated

import torch
import typer

from foley import command
from foley.application import application
from foley.errors import SettingError
from foley_training.bundle import write_bundle
from foley_training.config import read_config
from foley_training.run import STAGES, Run, train_stage

app = application("Train Video-Foley at small scale on procedurally generated clips.")


@app.command()
def run(
    config: Annotated[Path, typer.Argument(help="Configuration of the run, such as training/demo.yaml.")],
    work: Annotated[Path, typer.Option(help="Folder for caches, checkpoints and logs.")],
    only: Annotated[
        list[str] | None,
        typer.Option(help=f"Train only this stage; may be given several times. One of: {', '.join(STAGES)}."),
    ] = None,
    threads: Annotated[
        int, typer.Option(help="Number of CPU threads; 0: all. Use 1 for stages that are trained in parallel.")
    ] = 0,
) -> None:
    """Train every stage in order. An interrupted run resumes from its checkpoints; uses a GPU if there is one."""
    if unknown := set(only or ()) - set(STAGES):
        raise SettingError(f"unknown stage {min(unknown)!r}; choose from {', '.join(STAGES)}")
    if threads:
        torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    this = Run(read_config(config), work, device)
    for stage in STAGES:
        if not only or stage in only:
            train_stage(this, stage)


@app.command()
def bundle(
    config: Annotated[Path, typer.Argument(help="Configuration of the run.")],
    work: Annotated[Path, typer.Option(help="Folder of the run.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to create.")],
) -> None:
    """Create a bundle from the weights of a run: float16 weights and ONNX graphs."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # hides a warning about torchvision, which is not needed
    for stage in write_bundle(Run(read_config(config), work, torch.device("cpu")), output):
        typer.echo(stage, err=True)


def main() -> None:
    """Entry point of `foley-train`."""
    command.run(app)
