"""Temporary files, and temporary folders that are also removed after a crash.

Folders that killed processes left are removed by the next process.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from foley.errors import OutputError

_LOCK = "lock"


@contextmanager
def explained(folder: Path | None = None) -> Iterator[None]:
    """Explain errors of temporary files that are written in the block; the usual one is a full disk.

    Args:
        folder: The folder of the files; None: the system's folder for temporary files.

    Raises:
        OutputError: An operating system error occurred; the message names the folder.
    """
    try:
        yield
    except OSError as error:
        where = folder or tempfile.tempdir or os.environ.get("TMPDIR", "/tmp")  # gettempdir() itself may fail
        mend = "free space there" if folder else "free space there, or set TMPDIR to another folder"
        raise OutputError(f"cannot write temporary files in {where} ({error.strerror}); {mend}") from error


@contextmanager
def temporary_file(content: bytes, name: str) -> Iterator[Path]:
    """Provide `content` as a file called `name`, which is removed when the block ends.

    Raises:
        OutputError: The file cannot be written.
    """
    with ExitStack() as files:
        with explained():
            path = Path(files.enter_context(tempfile.TemporaryDirectory(prefix="foley-"))) / name
            path.write_bytes(content)
        yield path


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

    Raises:
        OutputError: The folder cannot be created.
    """

    def remove(folder: Path) -> None:
        also(folder)
        shutil.rmtree(folder, ignore_errors=True)

    with explained(parent):
        for left in Path(parent or tempfile.gettempdir()).glob(f"{prefix}*/{_LOCK}"):
            with suppress(OSError), left.open("rb") as file:  # in use, or owned by another user
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove(left.parent)
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    with ExitStack() as made:
        made.callback(remove, folder)
        with explained(parent):
            lock = made.enter_context((folder / f"{_LOCK}.new").open("wb"))
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Other processes look for the final name, so they never find a lock file that is not locked yet.
            (folder / f"{_LOCK}.new").rename(folder / _LOCK)
        yield folder
