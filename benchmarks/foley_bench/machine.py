"""The machine, versions, commit and bundle of a run, and its number of threads."""

import os
import platform
import subprocess
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch

from foley.bundle import Bundle, graph_file
from foley.stages import networks
from foley_server.backend.session import open_session

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


def describe(bundle: Bundle) -> dict[str, Any]:
    """Return the part of a JSON report that describes date, machine, versions, commit and bundle."""
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


def pin_threads(bundle: Bundle) -> int:
    """Set PyTorch's number of threads to that of the server's sessions, and return it."""
    folder = Path("/proc/self/task")
    before = len(list(folder.iterdir()))
    session = open_session(bundle.path(graph_file(next(iter(networks(bundle.manifest))))))
    threads = 1 + len(list(folder.iterdir())) - before  # the caller computes too
    del session
    torch.set_num_threads(threads)
    return threads


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
    """Return the commit of this checkout, with `-dirty` if files differ from it; None outside git."""
    if not (CHECKOUT / ".git").exists():
        return None
    command = ["git", "-C", str(CHECKOUT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, check=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
