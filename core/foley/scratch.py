"""Temporary folders of processes that may be killed: the next one removes what they left."""

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
    """A new folder whose name begins with `prefix`, gone at the end.

    Locked while it is in use: kernels drop the locks of a process that dies, so the next one with this prefix can tell
    which folders are left over, and removes them.

    Args:
        also: called before a folder is removed, to remove what is named after it.
        parent: where the folder is made; by default in the system's folder for temporary files.
    """

    def remove(folder: Path) -> None:
        also(folder)
        shutil.rmtree(folder, ignore_errors=True)

    for left in Path(parent or tempfile.gettempdir()).glob(f"{prefix}*/{_LOCK}"):
        with suppress(OSError), left.open("rb") as file:  # in use, or somebody else's
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove(left.parent)
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    try:
        with (folder / f"{_LOCK}.new").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # another process looks for the final name: it never finds a lock that is not held yet
            (folder / f"{_LOCK}.new").rename(folder / _LOCK)
            yield folder
    finally:
        remove(folder)
