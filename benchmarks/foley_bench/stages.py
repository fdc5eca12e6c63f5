"""`foley-bench stages`: every network of a bundle, compared with the baseline and the roofline bound."""

import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from rich.table import Table

from foley.bundle import Bundle, graph_file, verify
from foley.stages import networks
from foley_bench import inputs
from foley_bench.baseline.networks import run
from foley_bench.machine import describe, pin_threads
from foley_bench.measurement import measure as timings
from foley_bench.measurement import memory_bytes, server_processes
from foley_bench.report import Report, format_ms, stacked_bars, table
from foley_bench.roofline import count_flop, matrix_rates
from foley_client.embedded import embedded_triton
from foley_export.make import load_network
from foley_pipeline.progress import StageTimer
from foley_pipeline.triton import TritonClient
from foley_server.backend.session import open_session

LIMIT_S = 20.0
BACKENDS = {"baseline": "baseline", "onnxruntime": "ORT", "triton": "Triton"}


def measure(bundle: Bundle, rounds: int, timer: StageTimer) -> Report:
    """Time every network of `bundle` in the baseline, in ONNX Runtime and through Triton.

    Args:
        bundle: The bundle with its graphs.
        rounds: Maximum rounds of calls of each network; after `LIMIT_S` no further round begins.
        timer: Times the stages.

    Raises:
        BundleError: If the bundle is damaged or has no graphs.
        ServerUnavailable: If the embedded Triton cannot start.
    """
    verify(bundle)
    bundle.need_graphs()
    threads = pin_threads(bundle)
    with timer.stage("matrix rate"):
        rates = matrix_rates()
    rate = max(rates.values())
    started = time.perf_counter()
    with embedded_triton(bundle.root) as triton:
        start_s, loaded_bytes = time.perf_counter() - started, memory_bytes(server_processes())
        found = {name: _network(bundle, name, triton, rate, rounds, timer) for name in networks(bundle.manifest)}
        called_bytes = memory_bytes(server_processes())
    document = {
        **describe(bundle),
        "settings": {"rounds": rounds, "threads": threads},
        "matrix_flop_per_s": rates,
        "networks": found,
        "server": {"start_s": start_s, "memory_loaded_bytes": loaded_bytes, "memory_called_bytes": called_bytes},
    }
    bars = {name: [one[name]["median_s"] / one["baseline"]["median_s"] for one in found.values()] for name in BACKENDS}
    return Report(
        title=f"Networks: {bundle.manifest.name}",
        description="Every network at batch size 1 on random inputs: eager PyTorch in the official order of work (the "
        "baseline), this project's graph in ONNX Runtime, and the same graph through Triton over gRPC, called in turn. "
        f"The bound is the time that the arithmetic takes at {rate / 1e9:.0f} GFLOP/s, the best rate of a large "
        f"float32 matrix product ({', '.join(f'{name} {one / 1e9:.0f}' for name, one in rates.items())}). "
        f"{threads} threads on each side.",
        document=document,
        tables=[_networks_table(found), _server_table(document["server"])],
        pictures={
            "Time through Triton, relative to the baseline.": stacked_bars(
                {"Triton": bars["triton"]}, list(found), "time / baseline"
            )
        },
    )


def _network(
    bundle: Bundle, name: str, triton: TritonClient, rate: float, rounds: int, timer: StageTimer
) -> dict[str, Any]:
    with timer.stage(name, rounds) as progress, torch.inference_mode():
        started = time.perf_counter()
        session = open_session(bundle.path(graph_file(name)))
        load_s = time.perf_counter() - started
        network = load_network(bundle, name)
        tensors = inputs.sample(network)
        arrays = inputs.named(network, tensors)
        flop = count_flop(lambda: network(*tensors))
        found = timings(
            {
                "baseline": lambda: run(network, tensors),
                "onnxruntime": lambda: session.run(None, arrays),
                "triton": partial(triton.infer, name, **arrays),
            },
            rounds,
            LIMIT_S,
            progress.advance,
        )
    baseline_s, session_s, served_s = (found[backend].median_s for backend in BACKENDS)
    return {
        "flop": flop,
        "bound_s": flop / rate,
        "load_s": load_s,
        "onnxruntime_to_baseline": session_s / baseline_s,
        "onnxruntime_to_bound": session_s * rate / flop,
        "triton_overhead_s": served_s - session_s,
        **{backend: timing.as_dict() for backend, timing in found.items()},
    }


def _networks_table(found: Mapping[str, Any]) -> Table:
    rounds = [one["triton"]["rounds"] for one in found.values()]
    return table(
        "Networks: ratios, then ms of one call",
        ["network", "ORT /\nbaseline", "ORT /\nbound", "Triton\n− ORT\nms", *BACKENDS.values(), "bound", "load"],
        [
            [
                name,
                f"{one['onnxruntime_to_baseline']:.2f}",
                f"{one['onnxruntime_to_bound']:.2f}",
                f"{one['triton_overhead_s'] * 1e3:.1f}",
                *(format_ms(one[backend]) for backend in BACKENDS),
                f"{1e3 * one['bound_s']:.1f}",
                f"{1e3 * one['load_s']:.0f}",
            ]
            for name, one in found.items()
        ],
        f"ORT: ONNX Runtime. Medians of {min(rounds)} to {max(rounds)} rounds ± half the interquartile range. The "
        "bound counts matrix products and convolutions. Load: session creation with the files in the page cache.",
    )


def _server_table(server: Mapping[str, float]) -> Table:
    return table(
        "The server",
        ["start\ns", "memory when loaded\nGiB", "memory after the calls\nGiB"],
        [
            [
                f"{server['start_s']:.1f}",
                *(f"{server[f'memory_{when}_bytes'] / 2**30:.2f}" for when in ("loaded", "called")),
            ]
        ],
        "Start: time until every model is loaded. Memory: PSS of all server processes, before and after all networks "
        "were called.",
    )
