"""Folder for the files of a running server; folders left behind by killed servers are removed."""

from contextlib import AbstractContextManager
from pathlib import Path

from foley.scratch import scratch_folder

_SHARED_MEMORY = Path("/dev/shm")


def run_folder() -> AbstractContextManager[Path]:
    """Create a folder that is removed on exit, with the shared memory named after it (see `memory_prefix`)."""
    return scratch_folder("foley-triton-", _remove_shared_memory)


def memory_prefix(folder: Path) -> str:
    """Return the name prefix of a server's shared-memory regions.

    It is unique: servers with the same prefix destroy each other's regions.
    """
    return f"{folder.name}-"


def _remove_shared_memory(folder: Path) -> None:
    for region in _SHARED_MEMORY.glob(f"{memory_prefix(folder)}*"):
        region.unlink(missing_ok=True)
