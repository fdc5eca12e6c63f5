"""Every network of a bundle, timed three ways on the same random inputs, beside a floor.

PyTorch as the official pipeline runs it is the baseline; an ONNX Runtime session in this process is what the server
runs; an embedded Triton over gRPC is what a client meets. The floor is the time that the network's floating-point
operations would take at the machine's rate in a large fp32 matrix product, the best of all libraries here.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from rich import box
from rich.table import Table

from foley.bundle import Bundle, graph_file, verify
from foley.manifest import Manifest, OpticalFlowConfig
from foley.stages import networks
from foley_bench.flop import count_flop
from foley_bench.machine import describe, matrix_rates, servers_memory_bytes
from foley_bench.official import raft, sound
from foley_bench.report import Report
from foley_client import Triton, Watch, embedded_triton
from foley_export.make import load_network
from foley_export.networks.clap_text import ClapText
from foley_export.networks.denoiser import Denoiser
from foley_export.networks.network import Network
from foley_export.networks.optical_flow import OpticalFlow
from foley_server.session import open_session

FRAMES = 17  # a chunk of 16 pairs
FRAMES_OFFICIAL_RAFT = 3  # every pair costs it about 100 GFLOP
TOKENS = 16  # a sentence


@dataclass(frozen=True)
class Timing:
    """One network: its median time, in seconds, each way, and the least that its arithmetic takes."""

    sizes: Mapping[str, int]  # of the input's dimensions that vary
    flop: int  # in matrix products and convolutions
    rounds: int
    official_s: float
    onnxruntime_s: float
    triton_s: float
    floor_s: float
    load_s: float  # until the session is there, its weights read

    @property
    def triton_overhead_s(self) -> float:
        """What Triton and gRPC add to the session that they run."""
        return self.triton_s - self.onnxruntime_s

    @property
    def onnxruntime_to_official(self) -> float:
        """Below 1: the graph is faster than PyTorch."""
        return self.onnxruntime_s / self.official_s

    @property
    def onnxruntime_to_floor(self) -> float:
        """1: all the time is spent at the machine's matrix rate."""
        return self.onnxruntime_s / self.floor_s


def measure(bundle: Bundle, repeats: int, limit_s: float, watch: Watch) -> Report:
    """Time every network of `bundle`: up to `repeats` times each way, fewer (but one) where that passes `limit_s`.

    Raises:
        BundleError: the bundle is damaged or has no graphs.
        ServerUnavailable: no embedded Triton starts here.
    """
    verify(bundle)
    bundle.need_graphs()
    threads = _session_threads(bundle)
    torch.set_num_threads(threads)
    with watch.stage("matrix rate"):
        rates = matrix_rates()
    started = time.perf_counter()
    with embedded_triton(bundle.root) as triton:
        start_s, loaded_bytes = time.perf_counter() - started, servers_memory_bytes()
        timings = {
            name: _timing(bundle, name, triton, max(rates.values()), repeats, limit_s, watch)
            for name in networks(bundle.manifest)
        }
        called_bytes = servers_memory_bytes()
    document = {
        **describe(bundle),
        "settings": {"repeats": repeats, "limit_s": limit_s, "threads": threads},
        "matrix_flop_per_s": rates,
        "networks": {name: _figures(timing) for name, timing in timings.items()},
        "server": {"start_s": start_s, "memory_loaded_bytes": loaded_bytes, "memory_called_bytes": called_bytes},
    }
    return Report(
        title=f"Networks: {bundle.manifest.name}",
        lead="Every network by itself, batch 1, on random inputs: PyTorch as the official pipeline runs it, this "
        "project's graph in ONNX Runtime, and the same through Triton over gRPC. Ratios first; the floor is the time "
        f"that the arithmetic alone takes at {max(rates.values()) / 1e9:.0f} GFLOP/s, the best rate in a large fp32 "
        f"matrix product ({_rates(rates)}). {threads} threads each way.",
        document=document,
        tables=[_table(timings), _server_table(document["server"])],
        pictures={"Times of each network, relative to the official way.": _bars(timings)},
    )


def _timing(
    bundle: Bundle, name: str, triton: Triton, rate: float, repeats: int, limit_s: float, watch: Watch
) -> Timing:
    with watch.stage(name, repeats) as progress:
        started = time.perf_counter()
        session = open_session(bundle.path(graph_file(name)))
        load_s = time.perf_counter() - started
        network = load_network(bundle, name)
        sizes = _sizes(bundle.manifest)
        tensors = network.sample_inputs(sizes["batch"], sizes)
        arrays = {tensor.name: value.numpy() for tensor, value in zip(network.stage.inputs, tensors, strict=True)}
        outputs = [tensor.name for tensor in network.stage.outputs]
        with torch.inference_mode():
            flop = count_flop(lambda: network(*tensors))
            seconds = timed(
                {
                    "official": lambda: official(network, tensors),
                    "onnxruntime": lambda: session.run(outputs, arrays),
                    "triton": lambda: triton.infer(name, **arrays),
                },
                repeats,
                limit_s,
                progress.advance,
            )
        median_s = {way: statistics.median(values) for way, values in seconds.items()}
        return Timing(
            sizes={size: sizes[size] for size in network.stage.shape(network.stage.inputs[0]) if isinstance(size, str)},
            flop=flop,
            rounds=len(seconds["triton"]),
            official_s=median_s["official"],
            onnxruntime_s=median_s["onnxruntime"],
            triton_s=median_s["triton"],
            floor_s=flop / rate,
            load_s=load_s,
        )


def official(network: Network, tensors: Sequence[torch.Tensor]) -> object:
    """The work of `network` in eager PyTorch as the official pipeline does it.

    Pair by pair where it is optical flow, branch by branch where it is a denoiser, prompts padded to the limit.
    A network that has come to do less is held against what stands in its place there.
    """
    if isinstance(network, OpticalFlow):
        return [raft.to_bytes(raft.pair_flow(network, first, second)) for first, second in pairwise(tensors[0])]
    if isinstance(network, Denoiser):
        latents, timestep, envelope, embedding, negative_embedding, *_ = tensors
        return sound.guided_noise(network, latents, timestep[:, 0], envelope, embedding, negative_embedding)
    if isinstance(network, ClapText):
        return sound.embed(network, tensors[0][0].tolist())
    return network(*tensors)


def timed(
    calls: Mapping[str, Callable[[], object]], repeats: int, limit_s: float, on_round: Callable[[], object]
) -> Mapping[str, list[float]]:
    """Seconds of each call: all are warmed up, then called in turn, each round led by another.

    There are `repeats` rounds, or as many (but one) as begin within `limit_s`.
    """
    for call in calls.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    order = list(calls)
    begun = time.perf_counter()
    for i in range(repeats):
        if i and time.perf_counter() - begun > limit_s:
            break
        for name in order:
            started = time.perf_counter()
            calls[name]()
            seconds[name].append(time.perf_counter() - started)
        order.append(order.pop(0))
        on_round()
    return seconds


def _sizes(manifest: Manifest) -> dict[str, int]:
    """The dimensions that vary."""
    frames = FRAMES_OFFICIAL_RAFT if manifest.optical_flow == OpticalFlowConfig() else FRAMES
    return {"batch": 1, "frames": frames, "pairs": frames - 1, "tokens": TOKENS}


def _session_threads(bundle: Bundle) -> int:
    """How many threads a session computes with: its caller and those that appear with it."""
    threads = Path("/proc/self/task")
    before = len(list(threads.iterdir()))
    session = open_session(bundle.path(graph_file(next(iter(networks(bundle.manifest))))))
    count = 1 + len(list(threads.iterdir())) - before
    del session
    return count


def _figures(timing: Timing) -> dict[str, Any]:
    return {
        "sizes": timing.sizes,
        "flop": timing.flop,
        "rounds": timing.rounds,
        "triton_overhead_s": timing.triton_overhead_s,
        "onnxruntime_to_official": timing.onnxruntime_to_official,
        "onnxruntime_to_floor": timing.onnxruntime_to_floor,
        "official_s": timing.official_s,
        "onnxruntime_s": timing.onnxruntime_s,
        "triton_s": timing.triton_s,
        "floor_s": timing.floor_s,
        "load_s": timing.load_s,
    }


def _rates(rates: Mapping[str, float]) -> str:
    return ", ".join(f"{library} {rate / 1e9:.0f}" for library, rate in rates.items())


def _table(timings: Mapping[str, Timing]) -> Table:
    rounds = [timing.rounds for timing in timings.values()]
    shown = Table(
        box=box.SIMPLE_HEAD,
        title="Networks: ratios, then seconds of one call",
        caption=f"ORT: ONNX Runtime. Medians of {min(rounds)} to {max(rounds)} rounds. The floor counts matrix "
        "products and convolutions. Load: making the session, the files already in the system's cache.",
        caption_justify="left",
    )
    for heading in ("network", "input"):
        shown.add_column(heading, no_wrap=True)
    for heading in (
        "ORT /\nofficial",
        "ORT /\nfloor",
        "Triton\n− ORT\nms",
        "official",
        "ORT",
        "Triton",
        "floor",
        "load",
    ):
        shown.add_column(heading, justify="right", vertical="bottom")
    for name, timing in timings.items():
        seconds = (timing.official_s, timing.onnxruntime_s, timing.triton_s, timing.floor_s, timing.load_s)
        shown.add_row(
            name,
            ", ".join(f"{size} {name}" for name, size in timing.sizes.items() if name != "batch") or "a clip",
            f"{timing.onnxruntime_to_official:.2f}",
            f"{timing.onnxruntime_to_floor:.2f}",
            f"{timing.triton_overhead_s * 1e3:.1f}",
            *(f"{value:.3g}" for value in seconds),
        )
    return shown


def _server_table(server: Mapping[str, float]) -> Table:
    shown = Table(
        box=box.SIMPLE_HEAD,
        title="The server",
        caption="Start: until every model is loaded, from a bundle that was just read. Memory: resident, of all its "
        "processes, a page that they share counted once; after every network was called, with what ONNX Runtime keeps.",
        caption_justify="left",
    )
    for heading in ("start\ns", "memory when loaded\nGiB", "memory after the calls\nGiB"):
        shown.add_column(heading, justify="right", vertical="bottom")
    gibibytes = (server[f"memory_{when}_bytes"] / 2**30 for when in ("loaded", "called"))
    shown.add_row(f"{server['start_s']:.1f}", *(f"{value:.2f}" for value in gibibytes))
    return shown


def _bars(timings: Mapping[str, Timing]) -> Figure:
    figure = Figure(figsize=(9, 1 + 0.6 * len(timings)), layout="constrained")
    axes = figure.subplots()
    ways: Mapping[str, Sequence[float]] = {
        "ONNX Runtime": [timing.onnxruntime_s / timing.official_s for timing in timings.values()],
        "Triton": [timing.triton_s / timing.official_s for timing in timings.values()],
        "floor": [timing.floor_s / timing.official_s for timing in timings.values()],
    }
    for i, (way, values) in enumerate(ways.items()):
        axes.barh(np.arange(len(timings)) + 0.27 * (i - 1), values, height=0.25, label=way)
    axes.axvline(1, color="0.5", linestyle=":")
    axes.set_yticks(range(len(timings)), labels=list(timings))
    axes.invert_yaxis()
    axes.set_xlabel("time / official")
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    return figure
