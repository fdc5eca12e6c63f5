"""`foley-bench`: how fast and how good the deployment is, and what its differences from the original do."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from foley import bundle as bundles
from foley import command
from foley.errors import OutputError, SettingError
from foley.output import check_destination, replacing
from foley_bench import stages as stages_bench
from foley_client import Foley, embedded_triton
from foley_client.console import ProgressWatch

_WIDE = 160  # columns of a table that no terminal shows

app = typer.Typer(
    help="Measure Video-Foley's deployment, with a baseline and a floor beside every figure.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ClipCount = Annotated[int, typer.Option("--clips", help="Test clips of 10 s.", min=2)]  # a covariance takes two
Seed = Annotated[int, typer.Option(help="Chooses other test clips.", min=0)]
BundleFolder = Annotated[Path, typer.Argument(help="Folder of the bundle to measure.", metavar="BUNDLE")]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Write the numbers here too: a .json file.")]
Plots = Annotated[Path | None, typer.Option(help="Folder for pictures, PNG; made where it is missing.")]


@app.callback()
def _root() -> None:
    """Measure Video-Foley's deployment, with a baseline and a floor beside every figure."""


@app.command()
def stages(
    bundle: Annotated[Path, typer.Option(help="Folder of the bundle to measure.", envvar="FOLEY_BUNDLE")] = (
        stages_bench.CHECKOUT / "bundles" / "demo"
    ),
    repeats: Annotated[int, typer.Option(help="Calls of each network, each way.", min=1)] = 10,
    json_file: JsonFile = None,
) -> None:
    """Time every network: PyTorch, ONNX Runtime, Triton, and the floor that its arithmetic sets.

    foley-bench stages --bundle bundles/mine --json stages.json
    """
    if json_file is not None:
        check_destination(json_file, {".json"})
    with ProgressWatch() as watch:
        report = stages_bench.measure(bundles.read(bundle), repeats, watch)
    _show([stages_bench.table(report)], stages_bench.document(report), json_file)


@app.command()
def fidelity(
    video: Annotated[Path, typer.Option(help="Video of at most 10 s to measure with.")] = (
        stages_bench.CHECKOUT / "examples" / "drumstick.mp4"
    ),
) -> None:
    """Measure what the official pipeline's losses and habits do to the numbers: the figures of docs/fidelity.md."""
    try:
        from foley_bench.fidelity import measure_all
    except ImportError as error:
        raise SettingError(f"{error.name} is missing; install it with pip install 'foley-bench[fidelity]'") from error
    for effect in measure_all(video):
        typer.echo(f"{effect.what:<48} {effect.value:10.3g} {effect.unit}")


@app.command()
def quality(
    bundle: BundleFolder, clips: ClipCount = 100, seed: Seed = 0, json_file: JsonFile = None, plots: Plots = None
) -> None:
    """Measure how well a bundle keeps time and timbre, as the paper does, on rendered test clips: see docs/quality.md.

    foley-bench quality bundles/demo --json quality.json --plots docs/quality
    """
    from foley_bench.quality import plots as pictures
    from foley_bench.quality.evaluation import evaluate
    from foley_bench.quality.report import tables

    _prepare(json_file, plots)
    with ProgressWatch() as watch:
        evaluation = evaluate(bundles.read(bundle), clips, seed, watch)
    _show(tables(evaluation.figures), evaluation.figures, json_file)
    if plots is not None:
        pictures.draw(evaluation, plots)


@app.command()
def steps(
    bundle: BundleFolder, clips: ClipCount = 24, seed: Seed = 0, json_file: JsonFile = None, plots: Plots = None
) -> None:
    """Measure what fewer denoising steps cost in quality, and save in time, on the same clips and seeds.

    foley-bench steps bundles/demo --json steps.json --plots docs/quality
    """
    from foley_bench.quality import steps as steps_bench

    _prepare(json_file, plots)
    with ProgressWatch() as watch:
        figures = steps_bench.measure_steps(bundles.read(bundle), clips, seed, watch)
    _show([steps_bench.table(figures)], figures, json_file)
    if plots is not None:
        steps_bench.draw(figures, plots / "steps.png")


@app.command()
def figures(
    bundle: BundleFolder,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write to; made where it is missing.")],
) -> None:
    """Make the paper's figures 11 and 12, pictures and sounds: one text on four envelopes, one envelope for six texts.

    foley-bench figures bundles/demo -o docs/figures
    """
    from foley_bench.quality.figures import make

    _make_folder(output)
    with ProgressWatch() as watch, embedded_triton(bundle) as triton:
        make(Foley(triton), output, watch)


def _show(tables: Sequence[Table], document: Mapping[str, Any], json_file: Path | None) -> None:
    """Print the tables, and write the document if there is a file for it."""
    console = Console()
    if not console.is_terminal:
        console.width = _WIDE  # a file has no edge; 80 columns would cut figures off
    console.print(*tables, sep="\n")
    if json_file is not None:
        _write_json(json_file, document)


def _prepare(json_file: Path | None, plots: Path | None) -> None:
    """Find out before the long work whether its results can be written."""
    if json_file is not None:
        check_destination(json_file, {".json"})
    if plots is not None:
        _make_folder(plots)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"the folder {folder} cannot be made ({error.strerror}); choose another") from error


def _write_json(destination: Path, document: Mapping[str, Any]) -> None:
    with replacing(destination) as temporary:
        temporary.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n")


def main() -> None:
    """Entry point."""
    command.run(app)
