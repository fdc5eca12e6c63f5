"""The folder that a running server keeps its files in, and what is done about those of servers that were killed."""

from contextlib import AbstractContextManager
from pathlib import Path

from foley.scratch import scratch_folder

_SHARED_MEMORY = Path("/dev/shm")


def run_folder() -> AbstractContextManager[Path]:
    """A new folder, gone at the end with the shared memory that is named after it (see `memory_prefix`)."""
    return scratch_folder("foley-triton-", _remove_shared_memory)


def memory_prefix(folder: Path) -> str:
    """How the names of a server's shared-memory regions begin: no two alike, or servers destroy each other's."""
    return f"{folder.name}-"


def _remove_shared_memory(folder: Path) -> None:
    for region in _SHARED_MEMORY.glob(f"{memory_prefix(folder)}*"):
        region.unlink(missing_ok=True)
