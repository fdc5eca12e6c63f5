"""The `foley-export` command: creates bundles, and ONNX graphs and TensorRT engines from bundles.

Commands import torch themselves, because importing it takes seconds and `--help` and `fetch` do not need it.
"""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import (
    BarColumn,
    DownloadColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from foley import bundle as bundles
from foley import command
from foley.application import application
from foley.bars import Bars
from foley.bundle import Half, Precision, Tuning
from foley.errors import SettingError
from foley.manifest import Manifest
from foley.stages import networks
from foley_export import download
from foley_export.fetch import cache_folder, locked
from foley_export.fetch import fetch as fetch_file
from foley_export.presets import PAPER, PRESETS
from foley_export.published import LICENCE_NOTE, OPTIONS, PUBLISHED, TOKENIZER_FOLDER, import_command

app = application("Create Video-Foley bundles: first weights (`init` or `import`), then ONNX graphs (`onnx`).")


@app.command()
def init(
    bundle: Annotated[Path, typer.Argument(help="Folder to create.")],
    preset: Annotated[str, typer.Option(help=f"Sizes of the networks. One of: {', '.join(PRESETS)}.")],
    seed: Annotated[int, typer.Option(help="Seed of the random weights.")] = 0,
) -> None:
    """Create a bundle with random weights, for tests and benchmarks. Its output is noise."""
    if preset not in PRESETS:
        raise SettingError(f"unknown preset {preset!r}; choose from {', '.join(PRESETS)}")
    from foley_export import make

    _show("weights", PRESETS[preset], make.init(PRESETS[preset], seed, bundle))


@app.command("import")
def import_(
    rms2sound: Annotated[
        Path, typer.Option(help="ControlNetstep300000.pth, which also contains the VAE, vocoder and CLAP.")
    ],
    video2rms: Annotated[Path, typer.Option(help="checkpoint_000500_Video2RMS.pt.")],
    bn_inception: Annotated[Path, typer.Option(help="bn_inception-9f5701afb96c8044.pth.")],
    raft: Annotated[Path, typer.Option(help="torchvision's raft_large.")],
    bundle: Annotated[Path, typer.Option("--output", "-o", help="Folder to create.")],
    opts: Annotated[
        Path | None, typer.Option(help="Video2RMS' opts.yml, which is checked against the weights.")
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Folder with RoBERTa's tokenizer files.", show_default="downloaded by `fetch`")
    ] = None,
) -> None:
    """Create a bundle from the published weights. Every tensor in the files is accounted for."""
    from foley_export import importer
    from foley_export.import_plan import Files, plan

    checkpoints = {
        "--rms2sound": rms2sound,
        "--video2rms": video2rms,
        "--bn-inception": bn_inception,
        "--raft": raft,
    }
    planned = plan(PAPER, Files(checkpoints, tokenizer or cache_folder() / TOKENIZER_FOLDER, opts))
    _show("weights", planned.manifest, importer.write(planned, bundle))
    for path, groups in planned.unused.items():
        listed = ", ".join(f"{count:,} x {group}" for group, count in groups.items())
        typer.echo(f"{path.name}: unused: {listed or 'nothing'}", err=True)


@app.command()
def onnx(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle.")],
    precision: Annotated[
        Precision,
        typer.Option(help="Precision of the graphs; fp16 and bf16, which are for GPUs, are stored beside fp32."),
    ] = "fp32",
) -> None:
    """Export every network of a bundle to ONNX, beside its weights. The weights are not copied.

    The precision is part of the graph: fp16 and bf16 graphs keep numerically sensitive operators in fp32. For these the
    command reports the error of every network on random inputs; `verify --precision` uses the golden vectors.
    """
    from foley_export import half_report, make

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # hides a warning about torchvision, which is not needed
    _show("graph", bundles.read(bundle).manifest, make.make_graphs(bundle, precision))
    if precision != "fp32":
        half_report.show(precision, make.half_errors(bundle, precision))


@app.command()
def tensorrt(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle, with graphs of the precision.")],
    precision: Annotated[Half, typer.Option(help="Precision of the graphs that the engines are built from.")] = "fp16",
    profile: Annotated[
        Tuning, typer.Option(help="Tune the engines for single requests (latency) or full batches (throughput).")
    ] = "latency",
    check: Annotated[
        bool,
        typer.Option("--check", help="Only list what TensorRT does not support; requires neither a GPU nor TensorRT."),
    ] = False,
) -> None:
    """Build TensorRT engines from a bundle's graphs, on the GPU model that they will run on.

    Engines are written to BUNDLE/engines. Up-to-date engines are reused; if only the weights changed, the engine is
    refitted, which takes seconds. The action for each engine and its reason are printed.
    """
    from foley_export.tensorrt.build import build_engines, unsupported

    if check:
        problems = unsupported(bundles.read(bundle), precision)
        for stage, problem in problems:
            typer.echo(f"{stage}: {problem}")
        if problems:
            raise typer.Exit(1)
        typer.echo(f"TensorRT supports all operators of the {precision} graphs, according to its support matrix")
        return
    for stage, decision in build_engines(bundle, precision, profile):
        typer.echo(f"{stage}: {decision}")


@app.command()
def verify(
    vectors: Annotated[
        Path | None,
        typer.Option(help="Folder that contains `vectors/`.", show_default="../shared/reference beside the checkout"),
    ] = None,
    salt: Annotated[str, typer.Option(help="Salt of the seeded weights that the vectors were computed with.")] = "",
    onnx: Annotated[
        bool, typer.Option("--onnx", help="Also export every network and check its ONNX graph (minutes).")
    ] = False,
    precision: Annotated[
        Half | None, typer.Option(help="Also compare the graphs in this precision with those in fp32 (minutes).")
    ] = None,
) -> None:
    """Compare every network and table, at the official size, with golden vectors of the official implementation."""
    from foley_export.verification import verify as run_checks

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # as in `onnx`
    run_checks(vectors, salt, onnx, precision)


@app.command()
def fetch(
    only: Annotated[
        list[str] | None,
        typer.Option(help=f"Download only this file; may be given several times. One of: {', '.join(OPTIONS)}."),
    ] = None,
    mirror: Annotated[str | None, typer.Option(help="Base URL of a mirror with the same files.")] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Folder for the files.", show_default="$FOLEY_CACHE or ~/.cache/foley")
    ] = None,
) -> None:
    """Download the published weights, about 3 GB. Files that already exist are only verified.

    Interrupted downloads resume. Files that were placed in the folder by hand are used.
    """
    if unknown := set(only or ()) - set(OPTIONS):
        raise SettingError(f"unknown file {min(unknown)!r}; choose from {', '.join(OPTIONS)}")
    folder = (cache or cache_folder()).absolute()
    typer.echo(LICENCE_NOTE, err=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with locked(folder), Bars(*columns, TimeRemainingColumn()) as progress:
        for file in PUBLISHED:
            if not only or file.option in only:
                typer.echo(fetch_file(file, folder, mirror, _bar(progress, file.path)))
    if command_line := import_command(folder):
        typer.echo(f"To create a bundle from these files, run:\n{command_line}", err=True)


def _bar(progress: Bars, name: str) -> download.Progress:
    task = progress.add_task(name, total=None)
    return lambda done, total: progress.update(task, completed=done, total=total)


def _show(what: str, manifest: Manifest, stages: Iterable[str]) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Bars(*columns) as progress:
        task = progress.add_task(what, total=len(networks(manifest)))
        for done, stage in enumerate(stages):
            progress.update(task, completed=done, description=f"{what}: {stage}")


def main() -> None:
    """Entry point of `foley-export`."""
    command.run(app)
