"""Leak detection: compares snapshots of the resources of a server before and after many requests."""

import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from foley_server.jobs.database import CONNECTIONS
from harness.api_server import ApiServer

SETTLE_S = 30.0
SHARED_MEMORY = Path("/dev/shm")

# Growth that does not count as a leak.
MEMORY_BYTES = 128 * 2**20  # allocators keep some of the freed memory
SHARED_BYTES = 32 * 2**20  # Triton's Python backend keeps the peak size of each model
DESCRIPTORS = 4  # connections that open or close during the snapshot
POOLED = 3 * CONNECTIONS  # of a pool of connections to the store, which grows on demand; SQLite has three files each
THREADS = 16  # thread pools grow to their size on demand


@dataclass(frozen=True)
class Snapshot:
    """Resources of a process and its descendants.

    Attributes:
        memory_bytes: Resident set size of the process itself.
        descriptors: Number of open file descriptors of the process itself.
        threads: Number of threads of the process itself.
        children: Number of descendant processes by name.
        shared_memory_segments: Number of shared-memory segments on this machine that Tritons of this project created.
        shared_memory_bytes: Total size of these segments.
        uploads: Number of files of requests on disk.
    """

    memory_bytes: int
    descriptors: int
    threads: int
    children: Counter[str]
    shared_memory_segments: int
    shared_memory_bytes: int
    uploads: int


def take(server: ApiServer, in_cluster: bool = False) -> Snapshot:
    """Return a snapshot of a server; without the shared memory of Tritons in a cluster, where they come and go."""
    data = server.log.parent / "data"
    return look(server.process.pid, [path for path in data.glob("uploads-*/*") if path.is_dir()], not in_cluster)


def look(pid: int, uploads: list[Path], tritons: bool = True) -> Snapshot:
    """Return a snapshot of any process, with the given files of requests."""
    process = psutil.Process(pid)
    with process.oneshot():
        segments = _segments() if tritons else []
        return Snapshot(
            process.memory_info().rss,
            process.num_fds(),
            process.num_threads(),
            Counter(_names(process)),
            len(segments),
            sum(_size(segment) for segment in segments),
            len(uploads),
        )


def _segments() -> list[Path]:
    """Return the shared memory of Tritons, but not of those that other processes run: tests run beside each other."""
    family = {one.pid for one in psutil.Process().children(recursive=True)}
    others = []
    for one in psutil.process_iter(["name", "cmdline"]):
        if one.info["name"] == "tritonserver" and one.pid not in family:
            words = one.info["cmdline"] or []
            others += [word.rpartition("=")[2] for word in words if "shm-region-prefix-name" in word]
    found = SHARED_MEMORY.glob("foley-triton-*")
    return [segment for segment in found if not segment.name.startswith(tuple(others))]


def leaks(before: Snapshot, after: Snapshot, in_cluster: bool = False) -> list[str]:
    """Return one sentence for each resource that has grown by more than its tolerance.

    In a cluster, connections to the store are lost and made again.
    """
    allowed = {
        "memory_bytes": MEMORY_BYTES,
        "shared_memory_bytes": SHARED_BYTES,
        "descriptors": DESCRIPTORS + (POOLED if in_cluster else 0),
        "threads": THREADS,
    }
    found = []
    for name, then in asdict(before).items():
        now = asdict(after)[name]
        if name == "children":
            found += [f"processes: {now[one]} of {one}, {then[one]} before" for one in now if now[one] > then[one]]
        elif now - then > allowed.get(name, 0):
            found.append(f"{name.replace('_', ' ')}: {now:,}, {then:,} before")
    return found


def settled(
    server: ApiServer, before: Snapshot | None = None, timeout_s: float = SETTLE_S, in_cluster: bool = False
) -> Snapshot:
    """Wait until a server is idle, and return a snapshot.

    Args:
        server: The server.
        before: Earlier snapshot. The server is idle when nothing has leaked since; without it, when there are no
            uploads and two consecutive snapshots have the same number of descriptors.
        timeout_s: Seconds after which the last snapshot is returned even if the server is not idle.
        in_cluster: See `take` and `leaks`.
    """
    until = time.monotonic() + timeout_s
    last = take(server, in_cluster)
    while True:
        time.sleep(0.5)
        now = take(server, in_cluster)
        at_rest = (
            not leaks(before, now, in_cluster) if before else (now.uploads == 0 and now.descriptors == last.descriptors)
        )
        if at_rest or time.monotonic() > until:
            return now
        last = now


def _names(process: psutil.Process) -> list[str]:
    names = []
    for child in process.children(recursive=True):
        try:
            names.append(child.name())
        except psutil.NoSuchProcess:
            continue
    return names


def _size(segment: Path) -> int:
    try:
        return segment.stat().st_size
    except FileNotFoundError:
        return 0
