"""`foley-bench`: speed and quality of the deployment, and the effects of its differences from the original."""

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
from foley_client import Foley, embedded_triton
from foley_client.console import ProgressWatch

_CHECKOUT = Path(__file__).resolve().parents[2]
DEMO = _CHECKOUT / "bundles" / "demo"
EXAMPLES = _CHECKOUT / "examples"

app = application("Measure Video-Foley's deployment, with a baseline and a roofline bound beside every figure.")

ClipCount = Annotated[int, typer.Option("--clips", help="Test clips of 10 s.", min=2)]  # a covariance takes two
Seed = Annotated[int, typer.Option(help="Chooses other test clips.", min=0)]
BundleFolder = Annotated[Path, typer.Argument(help="Folder of the bundle to measure.", metavar="BUNDLE")]
BundleOption = Annotated[Path, typer.Option(help="Folder of the bundle to measure.", envvar="FOLEY_BUNDLE")]
PaperOption = Annotated[
    Path | None,
    typer.Option(
        help="Folder of the bundle to measure, with RAFT for `compare`.",
        envvar="FOLEY_BUNDLE",
        show_default="bundles/paper, made when it is missing",
    ),
]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Write the numbers here too: a .json file.")]
ReportFile = Annotated[
    Path | None, typer.Option("--report", help="Write a page with tables and plots: an .html file that needs no other.")
]
Plots = Annotated[Path | None, typer.Option(help="Folder for pictures, PNG; made where it is missing.")]


@app.command()
def stages(
    bundle: PaperOption = None,
    rounds: Annotated[int, typer.Option(help="Rounds of calls of each network, at most.", min=1)] = 10,
    seconds: Annotated[
        float, typer.Option(help="No further round of calls of a network begins after this time.", min=0)
    ] = 20.0,
    json_file: JsonFile = None,
    report_file: ReportFile = None,
) -> None:
    """Time every network: as the official pipeline runs it, in ONNX Runtime and through Triton.

    Beside them stands the roofline bound, the time that the network's arithmetic takes at the machine's best rate in a
    large matrix product. Also measured: start and memory of the server. By default at the official size, with seeded
    weights: five minutes, and three more the first time.

    foley-bench stages --json stages.json --report stages.html
    """
    report.prepare(json_file, report_file)
    from foley_bench import stages as bench
    from foley_bench.paper import paper_bundle

    with ProgressWatch() as watch:
        measured = bundles.read(bundle) if bundle else paper_bundle(watch)
        found = bench.measure(measured, rounds, seconds, watch)
    report.deliver(found, json_file, report_file)


@app.command()
def compare(
    bundle: PaperOption = None,
    full: Annotated[bool, typer.Option("--full", help="Time each unit as often as a clip has it: 15 minutes.")] = False,
    json_file: JsonFile = None,
    report_file: ReportFile = None,
) -> None:
    """Compare a whole clip in the official order of work with the server: the same work, equal steps, the profiles.

    A clip is the sum of equal units, such as a chunk of frames or a denoising step, each timed on both sides in turn.
    By default at the official size, with seeded weights: about three minutes, and three more the first time.

    foley-bench compare --json compare.json --report compare.html
    """
    from foley_bench import compare as bench
    from foley_bench.paper import paper_bundle

    report.prepare(json_file, report_file)
    with ProgressWatch() as watch:
        measured = bundles.read(bundle) if bundle else paper_bundle(watch)
        found = bench.measure(measured, full, watch)
    report.deliver(found, json_file, report_file)


@app.command()
def latency(
    bundle: BundleOption = DEMO,
    video: Annotated[Path, typer.Option(help="Video to make sound for.")] = EXAMPLES / "steel.mp4",
    runs: Annotated[int, typer.Option(help="Clips with each loop.", min=1)] = 8,
    json_file: JsonFile = None,
    report_file: ReportFile = None,
) -> None:
    """Time one clip at a time, from a video of 10 s to its sound over gRPC, and count what serving adds.

    Median and range of the latency, for the diffusion loop in the client and on the server, and the overhead, which is
    everything that is not a network, of a clip and of a denoising step. Two minutes with bundles/demo.

    foley-bench latency --json latency.json --report latency.html
    """
    report.prepare(json_file, report_file)
    from foley_bench import latency as bench

    with ProgressWatch() as watch:
        found = bench.measure(bundles.read(bundle), video, runs, watch)
    report.deliver(found, json_file, report_file)


@app.command()
def throughput(
    bundle: BundleOption = DEMO,
    clips: Annotated[int, typer.Option(help="Clips at every load, at least.", min=2)] = 24,
    video: Annotated[
        Path | None,
        typer.Option(help="Find the envelope of this video for every clip.", show_default="a given envelope"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Chooses other times of arrival.", min=0)] = 0,
    json_file: JsonFile = None,
    report_file: ReportFile = None,
) -> None:
    """Make many clips at once: clips a minute, batches, queues and latency, up to saturation and past it.

    First with 1, 2, 4, 8 and 16 callers, each of which sends the next request when answered. The last gives the
    capacity; then requests arrive at random, at 0.5 to 1.3 times that rate. Three minutes with bundles/demo.

    foley-bench throughput --json throughput.json --report throughput.html
    foley-bench throughput --video examples/steel.mp4 --clips 8
    """
    report.prepare(json_file, report_file)
    from foley_bench import throughput as bench

    with ProgressWatch() as watch:
        found = bench.measure(bundles.read(bundle), clips, video, seed, watch)
    report.deliver(found, json_file, report_file)


@app.command()
def convergence(
    bundle: Annotated[Path, typer.Option(help="Folder of a bundle with RAFT.", envvar="FOLEY_BUNDLE")],
    video: Annotated[Path, typer.Option(help="Video to find the flow of.")] = EXAMPLES / "steel.mp4",
    pairs: Annotated[int, typer.Option(help="Pairs of frames.", min=1)] = 16,
    json_file: JsonFile = None,
    report_file: ReportFile = None,
) -> None:
    """Measure after how many of RAFT's updates the flow changes no more than its bytes can show.

    Serves to choose the updates of `--profile fast`. Only the published weights give meaningful results.

    foley-bench convergence --bundle bundles/official --report convergence.html
    """
    report.prepare(json_file, report_file)
    from foley_bench import convergence as bench

    with ProgressWatch() as watch:
        found = bench.measure(bundles.read(bundle), video, pairs, watch)
    report.deliver(found, json_file, report_file)


@app.command()
def quality(
    bundle: BundleFolder, clips: ClipCount = 100, seed: Seed = 0, json_file: JsonFile = None, plots: Plots = None
) -> None:
    """Measure timing and timbre of a bundle's sounds, as the paper does, on rendered test clips: see docs/quality.md.

    Exits with 1 if a target is missed.

    foley-bench quality bundles/demo --json quality.json --plots docs/quality
    """
    from foley_bench.quality import plots as pictures
    from foley_bench.quality.evaluation import evaluate
    from foley_bench.quality.report import tables, targets

    _prepare(json_file, plots)
    with ProgressWatch() as watch:
        evaluation = evaluate(bundles.read(bundle), clips, seed, watch)
    report.show(tables(evaluation.figures))
    report.write_json(json_file, evaluation.figures)
    if plots is not None:
        pictures.draw(evaluation, plots)
    if not all(target.met for target in targets(evaluation.figures)):
        raise typer.Exit(1)


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
    report.show([steps_bench.table(figures)])
    report.write_json(json_file, figures)
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


@app.command()
def farm(
    bundle: BundleOption = DEMO,
    rows: Annotated[int, typer.Option(help="Rows to render on each side.", min=20)] = 40,
    json_file: JsonFile = None,
    report_file: ReportFile = None,
) -> None:
    """Time `foley render`: against a loop over the client, by rows at once, and on one node of Ray against two.

    foley-bench farm --bundle bundles/tiny --json farm.json --report farm.html
    """
    report.prepare(json_file, report_file)
    from foley_bench import farm as bench

    if not bench.has_ray():
        typer.echo("Ray is not installed, so its nodes are not measured; install foley-client[ray]", err=True)
    with TemporaryDirectory(prefix="foley-farm-") as folder:
        found = bench.measure(
            bundles.read(bundle), Path(folder), rows, bench.has_ray(), lambda what: typer.echo(what, err=True)
        )
    report.deliver(found, json_file, report_file)


@app.command()
def gpu(
    bundle: BundleOption = DEMO,
    precision: Annotated[Half, typer.Option(help="Half precision to measure.")] = "fp16",
    rounds: Annotated[int, typer.Option(help="Timed calls of each network in each backend.", min=1)] = 30,
    batch: Annotated[int, typer.Option(help="Rows of the denoiser.", min=1, max=16)] = 1,
    only: Annotated[
        list[str] | None, typer.Option(help="Only this network, and no clip; may be given several times.")
    ] = None,
    device: Annotated[str, typer.Option(help="cuda, cuda:1, ...; cpu only tests the command.")] = "cuda",
    json_file: JsonFile = None,
    report_file: ReportFile = None,
) -> None:
    """Time each network and a whole clip on a GPU, in all backends that are installed.

    Backends: eager PyTorch in the official order of work (the baseline), this project's networks eager, under autocast
    and compiled, ONNX Runtime's CUDA provider, TensorRT. Missing graphs and engines are made. Outputs are checked
    against float32 first. PyTorch alone is enough; skipped backends are listed. Results belong into docs/gpu/.

    foley-bench gpu --bundle BUNDLE --json gpu.json --report gpu.html
    """
    report.prepare(json_file, report_file)
    import torch

    from foley_bench.gpu.device import Device
    from foley_bench.gpu.measure import measure
    from foley_bench.gpu.prepare import prepare
    from foley_bench.inputs import CALLS

    if unknown := set(only or ()) - set(CALLS):
        raise SettingError(f"there is no network {min(unknown)!r}; choose from {', '.join(CALLS)}")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ServerUnavailable(
            "PyTorch has no GPU here; run this on a machine with one (`--device cpu` only tests the command)"
        )

    def say(what: str) -> None:
        typer.echo(what, err=True)

    loaded = prepare(bundle, precision, say)
    found = measure(loaded, Device(device), precision, rounds, batch, only or [], say)
    report.deliver(found, json_file, report_file)


def _prepare(json_file: Path | None, plots: Path | None) -> None:
    """Check before a long run that its results can be written."""
    report.prepare(json_file, None)
    if plots is not None:
        _make_folder(plots)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"the folder {folder} cannot be made ({error.strerror}); choose another") from error


def main() -> None:
    """Entry point."""
    command.run(app)
