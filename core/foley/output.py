"""Writes output files: checks the destination before long work starts, and replaces it atomically at the end."""

import fcntl
import os
import re
import secrets
import stat
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType

import av

from foley.errors import OutputError

_TEMPORARY = re.compile(r"\.foley-[0-9a-f]{16}\.partial(\.[^.]*)?")


def check_destination(path: Path, extensions: Collection[str], source: Path | None = None) -> None:
    """Check that a result can be written to `path`; call it before long work starts.

    Args:
        path: The destination. Its folder must exist and be writable. An existing file must be a regular, writable
            file; symbolic links are followed.
        extensions: Accepted extensions.
        source: The input file, which must not be the destination.

    Raises:
        OutputError: The destination cannot be written.
    """
    if path.suffix.lower() not in extensions:
        raise OutputError(f"{path} does not have a supported extension; use one of {', '.join(extensions)}")
    target = _target(path)
    try:
        with suppress(FileNotFoundError, NotADirectoryError):
            target.stat()  # since Python 3.14, is_dir() and exists() return False on any error
        if not target.parent.is_dir():
            raise OutputError(f"the folder {target.parent} does not exist; create it or use another")
        if not os.access(target.parent, os.W_OK | os.X_OK):
            raise OutputError(f"the folder {target.parent} is not writable; change its permissions or use another")
        if source is not None and path.exists() and source.exists() and path.samefile(source):
            raise OutputError(f"{path} is the input file, which must not be overwritten; use another name")
    except OSError as error:  # for example, the name is too long or a folder is not accessible
        raise OutputError(f"cannot write {path} ({error.strerror}); use another name") from error


class OutputFiles:
    """Writes several files, all or none of them; a context manager.

    Every file is written to a temporary file. The destinations are replaced when the context ends without an error. If
    replacing one fails, those before it are restored, unless their file system has no hard links.
    """

    def __init__(self) -> None:
        self._files: list[_OutputFile] = []

    def __enter__(self) -> "OutputFiles":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        try:
            if error is None:
                with ExitStack() as rollback:
                    for file in self._files:
                        with _translated(file.destination):
                            file.commit()
                        rollback.callback(file.restore)
                    rollback.pop_all()
        finally:
            for file in self._files:
                file.close()

    @contextmanager
    def replacing(self, destination: Path) -> Iterator[Path]:
        """Write a file that replaces `destination` when the context of this object ends.

        If `destination` is a symbolic link, its target is replaced; other hard links to the target keep the old
        content. The new file keeps the permissions of the old one and, if this process may set them, its owner and
        group.

        Yields:
            The path of the temporary file, in the same folder and with the same extension as `destination`.

        Raises:
            OutputError: The file cannot be written.
        """
        with _translated(destination):
            file = _OutputFile(destination)
            self._files.append(file)
            yield file.temporary


@contextmanager
def replacing(destination: Path) -> Iterator[Path]:
    """Replace `destination` atomically when the block ends without an error; see `OutputFiles.replacing`.

    Raises:
        OutputError: The file cannot be written or renamed.
    """
    with OutputFiles() as files, files.replacing(destination) as temporary:
        yield temporary


def remove_abandoned(folder: Path) -> None:
    """Remove the temporary files in `folder` whose writers were killed; the others are locked."""
    for path in folder.glob(".foley-*"):
        if _TEMPORARY.fullmatch(path.name):
            with suppress(OSError), path.open("r+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink(missing_ok=True)


class _OutputFile:
    """A temporary file and the destination that it replaces."""

    def __init__(self, destination: Path) -> None:
        self.destination, self._target = destination, _target(destination)
        self._replaced = self._target.stat() if self._target.exists() else None
        base = self._target.parent.resolve() / f".foley-{secrets.token_hex(8)}"
        self.temporary = base.with_name(f"{base.name}.partial{destination.suffix}")
        self._backup = base.with_name(f"{base.name}.backup")
        # Never give the new content wider read permissions than the old one. The lock proves that the writer lives. The
        # file gets the name that `remove_abandoned` looks for only when it is locked.
        self._lock = os.open(base, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600 if self._replaced else 0o666)
        with suppress(OSError):  # a file system without locks
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        base.rename(self.temporary)

    def commit(self) -> None:
        """Replace the destination."""
        if self._replaced:
            _set_permissions(self.temporary, self._replaced)
            with suppress(OSError):  # a file system without hard links
                os.link(self._target, self._backup)
        self.temporary.replace(self._target)

    def restore(self) -> None:
        """Undo `commit`."""
        with suppress(OSError):
            if not self._replaced:
                self._target.unlink()
            elif self._backup.exists():
                self._backup.replace(self._target)

    def close(self) -> None:
        """Remove what is left besides the destination."""
        self._backup.unlink(missing_ok=True)
        self.temporary.unlink(missing_ok=True)
        os.close(self._lock)


@contextmanager
def _translated(destination: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, av.FFmpegError) as error:
        reason = error.strerror
        raise OutputError(f"cannot write {destination} ({reason}); check the free space and permissions") from error


def _target(path: Path) -> Path:
    """Return the file that a write to `path` replaces: `path`, or the target of a symbolic link.

    Raises:
        OutputError: The target exists but is not a regular, writable file.
    """
    try:
        target = Path(os.path.realpath(path)) if path.is_symlink() else path
        if target.is_symlink():
            raise OutputError(f"{path} is a symbolic link to itself; remove it or use another name")
        if target.is_dir():
            raise OutputError(f"{path} is a folder; use the name of a file")
        if target.exists() and not target.is_file():
            raise OutputError(f"{path} is not a regular file; use another name")
        if target.exists() and not os.access(target, os.W_OK):
            raise OutputError(f"{path} is read-only; change its permissions or use another name")
    except OSError as error:
        raise OutputError(f"cannot write {path} ({error.strerror}); use another name") from error
    return target


def _set_permissions(path: Path, like: os.stat_result) -> None:
    if os.geteuid() == 0:
        os.chown(path, like.st_uid, like.st_gid)
    else:
        with suppress(PermissionError):  # the user is not a member of the group
            os.chown(path, -1, like.st_gid)
    path.chmod(stat.S_IMODE(like.st_mode))
