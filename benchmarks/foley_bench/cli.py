"""`foley-bench`: how fast the deployment is, and how fast it could be."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from foley import bundle as bundles
from foley import command
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
        stages_bench.CHECKOUT / "bundles" / "tiny"
    ),
    repeats: Annotated[int, typer.Option(help="Calls of each network, each way.", min=1)] = 10,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the numbers here too: a .json file.")] = None,
) -> None:
    """Time every network: PyTorch, ONNX Runtime, Triton, and the floor that its arithmetic sets.

    foley-bench stages --bundle bundles/tiny --json stages.json
    """
    if json_file is not None:
        check_destination(json_file, {".json"})
    with ProgressWatch() as watch:
        report = stages_bench.measure(bundles.read(bundle), repeats, watch)
    Console().print(stages_bench.table(report))
    if json_file is not None:
        with replacing(json_file) as temporary:
            temporary.write_text(json.dumps(stages_bench.document(report), indent=2) + "\n")


def main() -> None:
    """Entry point."""
    command.run(app)
