"""The `foley-bench` command: measures speed and quality of the deployment."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from foley import bundle as bundles
from foley import command
from foley.application import application
from foley.bundle import Half
from foley.errors import OutputError, ServerUnavailable, SettingError
from foley_bench import report
from foley_client.console import ProgressDisplay
from foley_client.embedded import embedded_triton
from foley_pipeline.triton_backend import TritonBackend

_CHECKOUT = Path(__file__).resolve().parents[2]
DEMO = _CHECKOUT / "bundles" / "demo"
EXAMPLES = _CHECKOUT / "examples"

app = application("Benchmark Video-Foley: speed against a baseline and the roofline bound, and quality.")

ClipCount = Annotated[
    int, typer.Option("--clips", help="Number of test clips of 10 s.", min=2)
]  # a covariance takes two
Seed = Annotated[int, typer.Option(help="Seed of the test clips.", min=0)]
BundleFolder = Annotated[Path, typer.Argument(help="Folder of the bundle to measure.", metavar="BUNDLE")]
BundleOption = Annotated[Path, typer.Option(help="Folder of the bundle to measure.", envvar="FOLEY_BUNDLE")]
PaperOption = Annotated[
    Path | None,
    typer.Option(
        help="Folder of the bundle to measure; `compare` needs RAFT.",
        envvar="FOLEY_BUNDLE",
        show_default="bundles/paper, created if missing",
    ),
]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Also write the results to this .json file.")]
ReportFile = Annotated[
    Path | None, typer.Option("--report", help="Also write a self-contained HTML report with tables and plots.")
]
Plots = Annotated[Path | None, typer.Option(help="Folder for PNG plots; created if missing.")]


@app.command()
def stages(
    bundle: PaperOption = None,
    rounds: Annotated[int, typer.Option(help="Maximum rounds of calls of each network.", min=1)] = 10,
    json_file: JsonFile = None,
    report_file: ReportFile = None,
) -> None:
    """Time every network: official implementation, ONNX Runtime, Triton, and the roofline bound.

    The roofline bound is the time that the network's arithmetic takes at the machine's best rate in a large matrix
    product. Start-up time and memory of the server are measured, too. By default at the official size with seeded
    weights: five minutes, plus three minutes on first use.

    foley-bench stages --json stages.json --report stages.html
    """
    report.check_outputs(json_file, report_file)
    from foley_bench import stages as bench
    from foley_bench.paper import paper_bundle

    with ProgressDisplay() as display:
        measured = bundles.read(bundle) if bundle else paper_bundle(display.timer)
        found = bench.measure(measured, rounds, display.timer)
    report.write(found, json_file, report_file)


@app.command()
def compare(
    bundle: PaperOption = None,
    full: Annotated[bool, typer.Option("--full", help="Time each unit as often as in a clip (15 minutes).")] = False,
    json_file: JsonFile = None,
    report_file: ReportFile = None,
) -> None:
    """Compare the official implementation with the server on a whole clip: same work, same steps, and every profile.

    A clip consists of equal units, such as a chunk of frames or a denoising step; each is timed on both sides in turn.
    By default at the official size with seeded weights: three minutes, plus three minutes on first use.

    foley-bench compare --json compare.json --report compare.html
    """
    from foley_bench import compare as bench
    from foley_bench.paper import paper_bundle

    report.check_outputs(json_file, report_file)
    with ProgressDisplay() as display:
        measured = bundles.read(bundle) if bundle else paper_bundle(display.timer)
        found = bench.measure(measured, full, display.timer)
    report.write(found, json_file, report_file)


@app.command()
def latency(
    bundle: BundleOption = DEMO,
    video: Annotated[Path, typer.Option(help="Input video.")] = EXAMPLES / "steel.mp4",
    runs: Annotated[int, typer.Option(help="Number of clips for each diffusion loop.", min=1)] = 8,
    json_file: JsonFile = None,
    report_file: ReportFile = None,
) -> None:
    """Measure the latency of single requests, from a video to its sound over gRPC, and the serving overhead.

    Reports median and range of the latency for the client and the server loop, and the overhead (all time outside the
    networks) per clip and per denoising step. Two minutes with bundles/demo.

    foley-bench latency --json latency.json --report latency.html
    """
    report.check_outputs(json_file, report_file)
    from foley_bench import latency as bench

    with ProgressDisplay() as display:
        found = bench.measure(bundles.read(bundle), video, runs, display.timer)
    report.write(found, json_file, report_file)


@app.command()
def throughput(
    bundle: BundleOption = DEMO,
    clips: Annotated[int, typer.Option(help="Minimum number of clips at every load.", min=2)] = 24,
    json_file: JsonFile = None,
    report_file: ReportFile = None,
) -> None:
    """Measure throughput, batch sizes, queue times and latency under load, up to and beyond saturation.

    First a closed loop with 1, 2, 4, 8 and 16 concurrent callers; the last one gives the capacity. Then an open loop
    with Poisson arrivals at 0.5 to 1.3 times the capacity. Three minutes with bundles/demo.

    foley-bench throughput --json throughput.json --report throughput.html
    """
    report.check_outputs(json_file, report_file)
    from foley_bench import throughput as bench

    with ProgressDisplay() as display:
        found = bench.measure(bundles.read(bundle), clips, display.timer)
    report.write(found, json_file, report_file)


@app.command()
def convergence(
    bundle: Annotated[Path, typer.Option(help="Folder of a bundle with RAFT.", envvar="FOLEY_BUNDLE")],
    video: Annotated[Path, typer.Option(help="Input video.")] = EXAMPLES / "steel.mp4",
    pairs: Annotated[int, typer.Option(help="Number of frame pairs.", min=1)] = 16,
    json_file: JsonFile = None,
    report_file: ReportFile = None,
) -> None:
    """Measure after how many of RAFT's updates the quantised flow no longer changes.

    Use it to choose the updates of `--profile fast`. Only the published weights give meaningful results.

    foley-bench convergence --bundle bundles/official --report convergence.html
    """
    report.check_outputs(json_file, report_file)
    from foley_bench import convergence as bench

    with ProgressDisplay() as display:
        found = bench.measure(bundles.read(bundle), video, pairs, display.timer)
    report.write(found, json_file, report_file)


@app.command()
def quality(
    bundle: BundleFolder, clips: ClipCount = 100, seed: Seed = 0, json_file: JsonFile = None, plots: Plots = None
) -> None:
    """Measure the paper's metrics for timing and timbre on rendered test clips; see docs/quality.md.

    The exit code is 1 if a target is missed.

    foley-bench quality bundles/demo --json quality.json --plots docs/quality
    """
    from foley_bench.quality import plots as pictures
    from foley_bench.quality.evaluation import evaluate
    from foley_bench.quality.report import tables, targets

    _prepare(json_file, plots)
    with ProgressDisplay() as display:
        evaluation = evaluate(bundles.read(bundle), clips, seed, display.timer)
    report.print_tables(tables(evaluation.figures))
    report.write_json(json_file, evaluation.figures)
    if plots is not None:
        pictures.draw(evaluation, plots)
    if not all(target.met for target in targets(evaluation.figures)):
        raise typer.Exit(1)


@app.command()
def steps(bundle: BundleFolder, clips: ClipCount = 24, seed: Seed = 0, json_file: JsonFile = None) -> None:
    """Measure quality and speed of different samplers, step counts and guidance settings.

    foley-bench steps bundles/demo --json steps.json
    """
    from foley_bench.quality import steps as steps_bench

    report.check_outputs(json_file, None)
    with ProgressDisplay() as display:
        figures = steps_bench.measure_steps(bundles.read(bundle), clips, seed, display.timer)
    report.print_tables([steps_bench.table(figures)])
    report.write_json(json_file, figures)


@app.command()
def figures(
    bundle: BundleFolder,
    output: Annotated[Path, typer.Option("-o", "--output", help="Output folder; created if missing.")],
) -> None:
    """Generate the paper's figures 11 and 12, with sounds: one text with four envelopes, one envelope with six texts.

    foley-bench figures bundles/demo -o docs/figures
    """
    from foley_bench.quality.figures import make

    _make_folder(output)
    with ProgressDisplay() as display, embedded_triton(bundle) as triton:
        make(TritonBackend(triton), output, display.on_progress)


@app.command()
def farm(
    bundle: BundleOption = DEMO,
    rows: Annotated[int, typer.Option(help="Number of rows rendered on each side.", min=20)] = 40,
    json_file: JsonFile = None,
    report_file: ReportFile = None,
) -> None:
    """Measure the throughput of `foley render`: against an SDK loop, by concurrency, on one and two Ray nodes.

    foley-bench farm --bundle bundles/tiny --json farm.json --report farm.html
    """
    report.check_outputs(json_file, report_file)
    from foley_bench import farm as bench

    if not bench.has_ray():
        typer.echo("Ray is not installed, so it is not measured; install foley-client[ray]", err=True)
    with TemporaryDirectory(prefix="foley-farm-") as folder:
        found = bench.measure(
            bundles.read(bundle), Path(folder), rows, bench.has_ray(), lambda what: typer.echo(what, err=True)
        )
    report.write(found, json_file, report_file)


@app.command()
def fidelity(
    video: Annotated[Path, typer.Option(help="Video of at most 10 s to measure with.")] = (EXAMPLES / "drumstick.mp4"),
) -> None:
    """Measure the effects of the official pipeline's lossy steps: the figures of docs/fidelity.md."""
    from foley_bench.fidelity import measure_all

    for effect in measure_all(video):
        typer.echo(f"{effect.what:<48} {effect.value:10.3g} {effect.unit}")


@app.command()
def gpu(
    bundle: BundleOption = DEMO,
    precision: Annotated[Half, typer.Option(help="Half precision to measure.")] = "fp16",
    rounds: Annotated[int, typer.Option(help="Number of timed calls of each network in each backend.", min=1)] = 30,
    batch: Annotated[int, typer.Option(help="Batch size of the denoiser.", min=1, max=16)] = 1,
    only: Annotated[
        list[str] | None, typer.Option(help="Measure only this network; may be given several times.")
    ] = None,
    device: Annotated[str, typer.Option(help="Device: cuda, cuda:1, ...; cpu only tests the command.")] = "cuda",
    json_file: JsonFile = None,
    report_file: ReportFile = None,
) -> None:
    """Time every network and a whole clip on a GPU, in all installed backends.

    Backends: eager PyTorch in the official order of work (the baseline), this project's networks in eager mode, under
    autocast and compiled, ONNX Runtime's CUDA provider and TensorRT, with the graphs and engines of the bundle. Outputs
    are first checked against float32. Only PyTorch is required; skipped backends are listed. Add results to docs/gpu/.

    foley-bench gpu --bundle BUNDLE --json gpu.json --report gpu.html
    """
    report.check_outputs(json_file, report_file)
    import torch

    from foley_bench.gpu.device import Device
    from foley_bench.gpu.measure import measure
    from foley_bench.inputs import CALLS

    if unknown := set(only or ()) - set(CALLS):
        raise SettingError(f"unknown network {min(unknown)!r}; choose from {', '.join(CALLS)}")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ServerUnavailable(
            "PyTorch finds no GPU; run this on a machine with a GPU (`--device cpu` only tests the command)"
        )

    def log(what: str) -> None:
        typer.echo(what, err=True)

    found = measure(bundles.read(bundle), Device(device), precision, rounds, batch, only or [], log)
    report.write(found, json_file, report_file)


def _prepare(json_file: Path | None, plots: Path | None) -> None:
    """Check before a long run that its results can be written."""
    report.check_outputs(json_file, None)
    if plots is not None:
        _make_folder(plots)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"the folder {folder} cannot be created ({error.strerror}); choose another folder") from error


def main() -> None:
    """Entry point of `foley-bench`."""
    command.run(app)
