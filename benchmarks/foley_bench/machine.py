"""What a run was measured on: the machine, its memory, the versions, the commit and the bundle."""

import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import psutil
import torch
from onnx import TensorProto, helper

from foley.bundle import Bundle

CHECKOUT = Path(__file__).resolve().parents[2]
PACKAGES = (
    "foley-bench",
    "numpy",
    "nvidia-pytriton",
    "onnxruntime",
    "opencv-python-headless",
    "torch",
    "tritonclient",
)

MATRIX_SIZES = (1024, 2048)
MATRIX_SECONDS = 1.0  # of products of one size in one library


def describe(bundle: Bundle) -> dict[str, Any]:
    """The part of every report that says what was measured, on what, and when: keys for its JSON document."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": {
            "cpu": _cpu(),
            "cores": len(os.sched_getaffinity(0)),
            "memory_bytes": psutil.virtual_memory().total,
        },
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "commit": _commit(),
        "bundle": {"name": bundle.manifest.name, "digest": bundle.digest},
    }


def matrix_flop_per_s() -> float:
    """The best rate that a library here reaches in a large fp32 matrix product with all threads: see `matrix_rates`."""
    return max(matrix_rates().values())


def matrix_rates() -> Mapping[str, float]:
    """The best rate of each library in large square fp32 matrix products with all threads, in operations a second.

    They differ by a factor of two on some processors, so a floor from one of them alone can lie too high.
    """
    rates: dict[str, float] = {}
    for size in MATRIX_SIZES:
        for library, multiply in _products(size).items():
            rates[library] = max(rates.get(library, 0.0), 2.0 * size**3 / _least_s(multiply))
    return rates


def _products(size: int) -> Mapping[str, Callable[[], object]]:
    """A product of the same two matrices in every library."""
    a, b = np.random.default_rng(0).standard_normal((2, size, size), np.float32)
    product = torch.empty(size, size)
    session = _matmul_session()
    return {
        "PyTorch": lambda: torch.mm(torch.from_numpy(a), torch.from_numpy(b), out=product),
        "ONNX Runtime": lambda: session.run(None, {"a": a, "b": b}),
    }


def _matmul_session() -> ort.InferenceSession:
    a, b, product = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, None]) for name in ("a", "b", "product")
    )
    graph = helper.make_graph([helper.make_node("MatMul", ["a", "b"], ["product"])], "product", [a, b], [product])
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)])
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def _least_s(call: Callable[[], object]) -> float:
    """The shortest time of `call`, called for `MATRIX_SECONDS` and at least twice."""
    call()
    seconds: list[float] = []
    while len(seconds) < 2 or sum(seconds) < MATRIX_SECONDS:
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def servers_memory_bytes() -> int:
    """Resident memory of all processes that this one has started, servers and those they started included.

    A page that several of them share counts once (PSS of Linux).
    """
    return sum(process.memory_full_info().pss for process in psutil.Process().children(recursive=True))


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
