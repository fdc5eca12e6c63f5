"""Leak detection: snapshots of what a server holds, before and after many requests, and their comparison."""

import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from harness.api_server import ApiServer

SETTLE_S = 30.0
SHARED_MEMORY = Path("/dev/shm")
MEMORY_BYTES = 128 * 2**20  # of growth that is no leak: allocators keep some of what they were given back
SHARED_BYTES = 32 * 2**20  # Triton's Python backend keeps what a model's busiest moment took
DESCRIPTORS = 4  # a connection that comes or goes in the same moment
THREADS = 16  # pools grow to their size when they are needed


@dataclass(frozen=True)
class Snapshot:
    """What a process, and those below it, hold.

    Attributes:
        memory_bytes: resident, of the process itself.
        children: name of a process below it -> how many.
        shared_memory_bytes: of all segments of this machine whose names are a Triton's of ours.
        uploads: files of requests on disk.
    """

    memory_bytes: int
    descriptors: int
    threads: int
    children: Counter[str]
    shared_memory_segments: int
    shared_memory_bytes: int
    uploads: int


def take(server: ApiServer) -> Snapshot:
    """Look now."""
    data = server.log.parent / "data"
    return look(server.process.pid, list(data.glob("uploads-*/*")))


def look(pid: int, uploads: list[Path]) -> Snapshot:
    """Look at any process; `uploads` are the files that are a request's."""
    process = psutil.Process(pid)
    with process.oneshot():
        segments = list(SHARED_MEMORY.glob("foley-triton-*"))
        return Snapshot(
            process.memory_info().rss,
            process.num_fds(),
            process.num_threads(),
            Counter(_names(process)),
            len(segments),
            sum(_size(segment) for segment in segments),
            len(uploads),
        )


def leaks(before: Snapshot, after: Snapshot) -> list[str]:
    """What has grown by more than chance: a sentence each, none where all is well."""
    allowed = {
        "memory_bytes": MEMORY_BYTES,
        "shared_memory_bytes": SHARED_BYTES,
        "descriptors": DESCRIPTORS,
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


def settled(server: ApiServer, before: Snapshot | None = None, timeout_s: float = SETTLE_S) -> Snapshot:
    """A look at a server that has come to rest: nothing leaks since `before`, or two looks agree; or time is over."""
    until = time.monotonic() + timeout_s
    last = take(server)
    while True:
        time.sleep(0.5)
        now = take(server)
        at_rest = not leaks(before, now) if before else (now.uploads == 0 and now.descriptors == last.descriptors)
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
