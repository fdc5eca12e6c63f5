"""Temporary folders that are also removed after a crash: the next process removes those left by killed ones."""

import fcntl
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_LOCK = "lock"


def _nothing(folder: Path) -> None:
    pass


@contextmanager
def scratch_folder(prefix: str, also: Callable[[Path], None] = _nothing, parent: Path | None = None) -> Iterator[Path]:
    """Create a temporary folder and remove it when the block ends.

    A lock file is locked while the folder is in use. The kernel releases the locks of a process that dies, so the next
    process with the same prefix detects and removes abandoned folders.

    Args:
        prefix: Prefix of the folder's name.
        also: Called with a folder before it is removed, to remove resources that are named after it.
        parent: Parent folder; None: the system's folder for temporary files.

    Yields:
        The path of the folder.
    """

    def remove(folder: Path) -> None:
        also(folder)
        shutil.rmtree(folder, ignore_errors=True)

    for left in Path(parent or tempfile.gettempdir()).glob(f"{prefix}*/{_LOCK}"):
        with suppress(OSError), left.open("rb") as file:  # in use, or owned by another user
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove(left.parent)
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    try:
        with (folder / f"{_LOCK}.new").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Other processes look for the final name, so they never find a lock file that is not locked yet.
            (folder / f"{_LOCK}.new").rename(folder / _LOCK)
            yield folder
    finally:
        remove(folder)
