"""The folder that a running server keeps its files in, and what is done about those of servers that were killed."""

import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PREFIX = "foley-triton-"
_LOCK = "lock"
_SHARED_MEMORY = Path("/dev/shm")


@contextmanager
def run_folder() -> Iterator[Path]:
    """A new folder, gone at the end with the shared memory that is named after it (see `memory_prefix`).

    Locked while it is in use: kernels drop the locks of a process that dies, so the next server can tell which
    folders are left over, and removes them.
    """
    _sweep()
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    try:
        with (folder / _LOCK).open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield folder
    finally:
        _remove(folder)


def memory_prefix(folder: Path) -> str:
    """How the names of a server's shared-memory regions begin: no two alike, or servers destroy each other's."""
    return f"{folder.name}-"


def _sweep() -> None:
    for lock in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*/{_LOCK}"):
        with suppress(OSError), lock.open("rb") as file:  # in use, or somebody else's
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(lock.parent)


def _remove(folder: Path) -> None:
    for region in _SHARED_MEMORY.glob(f"{memory_prefix(folder)}*"):
        region.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
