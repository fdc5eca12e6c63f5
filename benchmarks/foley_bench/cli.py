"""`foley-bench`: how fast the deployment is, how fast it could be, and what its differences from the original do."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from foley import bundle as bundles
from foley import command
from foley.errors import SettingError
from foley.output import check_destination, replacing
from foley_bench import stages as stages_bench
from foley_client.console import ProgressWatch

app = typer.Typer(
    help="Measure Video-Foley's deployment, with a baseline and a floor beside every figure.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _root() -> None:
    """Measure Video-Foley's deployment, with a baseline and a floor beside every figure."""


@app.command()
def stages(
    bundle: Annotated[Path, typer.Option(help="Folder of the bundle to measure.", envvar="FOLEY_BUNDLE")] = (
        stages_bench.CHECKOUT / "bundles" / "demo"
    ),
    repeats: Annotated[int, typer.Option(help="Calls of each network, each way.", min=1)] = 10,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the numbers here too: a .json file.")] = None,
) -> None:
    """Time every network: PyTorch, ONNX Runtime, Triton, and the floor that its arithmetic sets.

    foley-bench stages --bundle bundles/mine --json stages.json
    """
    if json_file is not None:
        check_destination(json_file, {".json"})
    with ProgressWatch() as watch:
        report = stages_bench.measure(bundles.read(bundle), repeats, watch)
    Console().print(stages_bench.table(report))
    if json_file is not None:
        with replacing(json_file) as temporary:
            temporary.write_text(json.dumps(stages_bench.document(report), indent=2) + "\n")


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


def main() -> None:
    """Entry point."""
    command.run(app)
