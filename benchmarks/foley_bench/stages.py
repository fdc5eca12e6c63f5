"""Every network of a bundle, timed three ways on the same random inputs, beside a floor.

Eager PyTorch is the baseline; an ONNX Runtime session in this process is what the server runs; an
embedded Triton over gRPC is what a client meets. The floor is the time that the network's
floating-point operations would take at the machine's rate in a large fp32 matrix product.
"""

import math
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import onnxruntime as ort
import torch
from rich import box
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from foley.bundle import Bundle, graph_file, verify
from foley.errors import BundleError
from foley.manifest import Manifest, OpticalFlowConfig
from foley.stages import networks
from foley_client import Triton, Watch, embedded_triton
from foley_export.make import load_network

CHECKOUT = Path(__file__).resolve().parents[2]
PACKAGES = ("foley-bench", "numpy", "nvidia-pytriton", "onnxruntime", "torch", "tritonclient")

FRAMES = 17  # a chunk of 16 pairs
FRAMES_OFFICIAL_RAFT = 3  # every pair costs it about 100 GFLOP
TOKENS = 16  # a sentence

MATRIX_SIZE = 2048
MATRIX_REPEATS = 8


@dataclass(frozen=True)
class Timing:
    """One network: its median time, in seconds, each way, and the least that its arithmetic takes."""

    stage: str
    sizes: Mapping[str, int]  # of the input's dimensions that vary
    flop: int  # in matrix products and convolutions
    eager_s: float
    onnxruntime_s: float
    triton_s: float
    floor_s: float

    @property
    def triton_overhead_s(self) -> float:
        """What Triton and gRPC add to the session that they run."""
        return self.triton_s - self.onnxruntime_s

    @property
    def onnxruntime_to_eager(self) -> float:
        """Below 1: the graph is faster than PyTorch."""
        return self.onnxruntime_s / self.eager_s

    @property
    def onnxruntime_to_floor(self) -> float:
        """1: all the time is spent at the machine's matrix rate."""
        return self.onnxruntime_s / self.floor_s


@dataclass(frozen=True)
class Report:
    """One run: what was measured, on what, and how."""

    cpu: str
    cores: int
    matrix_flop_per_s: float
    threads: int  # of PyTorch, of the session here, and of the one inside Triton
    versions: Mapping[str, str | None]
    commit: str | None
    bundle_name: str
    bundle_digest: str
    repeats: int
    timings: Sequence[Timing]


def measure(bundle: Bundle, repeats: int, watch: Watch) -> Report:
    """Time every network of `bundle`, `repeats` times each way.

    Raises:
        BundleError: the bundle is damaged or has no graphs.
        ServerUnavailable: no embedded Triton starts here.
    """
    verify(bundle)
    if missing := bundle.missing_graphs():
        raise BundleError(
            f"the bundle {bundle.root} has no graph for {', '.join(missing)}: "
            f"run `foley-export onnx {bundle.root}` first"
        )
    threads = _session_threads(bundle)
    torch.set_num_threads(threads)
    with watch.stage("matrix rate"):
        rate = _matrix_flop_per_s()
    with ExitStack() as stack:
        with watch.stage("starting the server"):
            triton = stack.enter_context(embedded_triton(bundle.root))
        timings = [_timing(bundle, stage, triton, rate, repeats, watch) for stage in networks(bundle.manifest)]
    return Report(
        cpu=_cpu(),
        cores=len(os.sched_getaffinity(0)),
        matrix_flop_per_s=rate,
        threads=threads,
        versions={"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        commit=_commit(),
        bundle_name=bundle.manifest.name,
        bundle_digest=bundle.digest,
        repeats=repeats,
        timings=timings,
    )


def _timing(bundle: Bundle, name: str, triton: Triton, rate: float, repeats: int, watch: Watch) -> Timing:
    with watch.stage(name, repeats) as progress:
        network, session = load_network(bundle, name), _session(bundle, name)
        sizes = _sizes(bundle.manifest)
        tensors = network.sample_inputs(sizes["batch"], sizes)
        arrays = {tensor.name: value.numpy() for tensor, value in zip(network.stage.inputs, tensors, strict=True)}
        outputs = [tensor.name for tensor in network.stage.outputs]
        with torch.inference_mode():
            flop = _flop(lambda: network(*tensors))
            seconds = medians(
                {
                    "eager": lambda: network(*tensors),
                    "onnxruntime": lambda: session.run(outputs, arrays),
                    "triton": lambda: triton.infer(name, **arrays),
                },
                repeats,
                progress.advance,
            )
        return Timing(
            stage=name,
            sizes={size: sizes[size] for size in network.stage.shape(network.stage.inputs[0]) if isinstance(size, str)},
            flop=flop,
            eager_s=seconds["eager"],
            onnxruntime_s=seconds["onnxruntime"],
            triton_s=seconds["triton"],
            floor_s=flop / rate,
        )


def medians(
    calls: Mapping[str, Callable[[], object]], repeats: int, on_round: Callable[[], object]
) -> Mapping[str, float]:
    """Median seconds of each call: all are warmed up, then called in turn, each round led by another."""
    for call in calls.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    order = list(calls)
    for _ in range(repeats):
        for name in order:
            started = time.perf_counter()
            calls[name]()
            seconds[name].append(time.perf_counter() - started)
        order.append(order.pop(0))
        on_round()
    return {name: statistics.median(values) for name, values in seconds.items()}


def _sizes(manifest: Manifest) -> dict[str, int]:
    """The dimensions that vary."""
    frames = FRAMES_OFFICIAL_RAFT if manifest.optical_flow == OpticalFlowConfig() else FRAMES
    return {"batch": 1, "frames": frames, "pairs": frames - 1, "tokens": TOKENS}


def _session(bundle: Bundle, stage: str) -> ort.InferenceSession:
    """The session that `foley_server.network_model` opens inside Triton."""
    options = ort.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(bundle.path(graph_file(stage)), options, providers=["CPUExecutionProvider"])


def _session_threads(bundle: Bundle) -> int:
    """How many threads a session computes with: its caller and those that appear with it."""
    threads = Path("/proc/self/task")
    before = len(list(threads.iterdir()))
    session = _session(bundle, next(iter(networks(bundle.manifest))))
    count = 1 + len(list(threads.iterdir())) - before
    del session
    return count


def _matrix_flop_per_s() -> float:
    """The best rate of several large fp32 matrix products with all threads."""
    a, b = torch.randn(2, MATRIX_SIZE, MATRIX_SIZE)
    product = torch.empty(MATRIX_SIZE, MATRIX_SIZE)
    best = math.inf
    for _ in range(MATRIX_REPEATS):
        started = time.perf_counter()
        torch.mm(a, b, out=product)
        best = min(best, time.perf_counter() - started)
    return 2.0 * MATRIX_SIZE**3 / best


def _flop(call: Callable[[], object]) -> int:
    """Floating-point operations of `call` in matrix products and convolutions."""
    aten = torch.ops.aten
    with FlopCounterMode(
        display=False,
        custom_mapping={  # the two that PyTorch computes in one operator on CPU and does not count
            aten._scaled_dot_product_flash_attention_for_cpu: _attention_flop,
            aten.mkldnn_rnn_layer: _lstm_flop,
        },
    ) as counter:
        call()
    return counter.get_total_flops()


def _attention_flop(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _lstm_flop(inputs: Sequence[int], of_input: Sequence[int], of_state: Sequence[int], *_: Any, **__: Any) -> int:
    """One direction of a layer, from the shapes of its input [..., C] and of its two weight matrices."""
    return 2 * math.prod(inputs[:-1]) * (math.prod(of_input) + math.prod(of_state))


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None  # a server installed elsewhere


def _commit() -> str | None:
    """The commit of this checkout, with `-dirty` when files differ from it; None outside git."""
    if not (CHECKOUT / ".git").exists():
        return None
    command = ["git", "-C", str(CHECKOUT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, check=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def document(report: Report) -> dict[str, Any]:
    """The report for JSON; times in seconds, rates in operations a second."""
    return {
        "machine": {"cpu": report.cpu, "cores": report.cores, "matrix_flop_per_s": report.matrix_flop_per_s},
        "threads": report.threads,
        "versions": report.versions,
        "commit": report.commit,
        "bundle": {"name": report.bundle_name, "digest": report.bundle_digest},
        "repeats": report.repeats,
        "networks": {
            timing.stage: {
                "sizes": timing.sizes,
                "flop": timing.flop,
                "triton_overhead_s": timing.triton_overhead_s,
                "onnxruntime_to_eager": timing.onnxruntime_to_eager,
                "onnxruntime_to_floor": timing.onnxruntime_to_floor,
                "seconds": {
                    "eager": timing.eager_s,
                    "onnxruntime": timing.onnxruntime_s,
                    "triton": timing.triton_s,
                    "floor": timing.floor_s,
                },
            }
            for timing in report.timings
        },
    }


def table(report: Report) -> Table:
    """The report for people."""
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items() if version)
    shown = Table(
        box=box.SIMPLE_HEAD,
        padding=0,
        title="Networks: ratios, then seconds of one call",
        caption=f"{report.cpu}, {report.cores} cores, {report.matrix_flop_per_s / 1e9:.0f} GFLOP/s in a "
        f"{MATRIX_SIZE}³ fp32 matrix product, at which the floor does the matrix products and convolutions; "
        f"batch 1, {report.threads} threads each way, medians of {report.repeats} calls. "
        f"Bundle {report.bundle_name} ({report.bundle_digest[:12]}). {versions}.",
        caption_justify="left",
    )
    for heading in ("network", "input"):
        shown.add_column(heading, no_wrap=True)
    for heading in ("Triton\n− ORT\nms", "ORT /\neager", "ORT /\nfloor", "eager\ns", "ORT\ns", "Triton\ns", "floor\ns"):
        shown.add_column(heading, justify="right", vertical="bottom")
    for timing in report.timings:
        seconds = (timing.eager_s, timing.onnxruntime_s, timing.triton_s, timing.floor_s)
        shown.add_row(
            timing.stage,
            ", ".join(f"{size} {name}" for name, size in timing.sizes.items() if name != "batch") or "a clip",
            f"{timing.triton_overhead_s * 1e3:.1f}",
            f"{timing.onnxruntime_to_eager:.2f}",
            f"{timing.onnxruntime_to_floor:.1f}",
            *(f"{value:.2g}" for value in seconds),
        )
    return shown
