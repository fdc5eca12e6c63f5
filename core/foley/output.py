"""Writes output files: checks the destination before long work starts, and replaces it atomically at the end."""

import os
import secrets
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import av

from foley.errors import OutputError


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
            raise OutputError(f"the folder {target.parent} does not exist; create it or choose another")
        if not os.access(target.parent, os.W_OK | os.X_OK):
            raise OutputError(f"the folder {target.parent} is not writable; choose another or change its permissions")
        if source is not None and path.exists() and source.exists() and path.samefile(source):
            raise OutputError(f"{path} is the source itself, which is never overwritten; choose another name")
    except OSError as error:  # for example, the name is too long or a folder is not accessible
        raise OutputError(f"{path} cannot be written ({error.strerror}); choose another name") from error


@contextmanager
def replacing(destination: Path) -> Iterator[Path]:
    """Replace `destination` atomically with a temporary file when the block ends without an error.

    If `destination` is a symbolic link, its target is replaced; other hard links to the target keep the old content.
    The new file keeps the permissions of the old one and, if this process may set them, its owner and group. To write
    several files only if all of them succeed, enter several of these context managers on one ExitStack.

    Yields:
        The path of the temporary file, in the same folder and with the same extension as `destination`.

    Raises:
        OutputError: The file cannot be written or renamed.
    """
    target = _target(destination)
    temporary = target.parent.resolve() / f".foley-{secrets.token_hex(8)}.partial{destination.suffix}"
    try:
        replaced = target.stat() if target.exists() else None
        if replaced:  # never give the new content wider read permissions than the old one
            os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        yield temporary
        if replaced:
            _set_permissions(temporary, replaced)
        temporary.replace(target)
    except (OSError, av.FFmpegError) as error:
        reason = error.strerror
        raise OutputError(f"{destination} cannot be written ({reason}); check free space and permissions") from error
    finally:
        temporary.unlink(missing_ok=True)


def _target(path: Path) -> Path:
    """Return the file that a write to `path` replaces: `path`, or the target of a symbolic link.

    Raises:
        OutputError: The target exists but is not a regular, writable file.
    """
    try:
        target = Path(os.path.realpath(path)) if path.is_symlink() else path
        if target.is_symlink():
            raise OutputError(f"{path} is a link that leads back to itself; remove it or choose another name")
        if target.is_dir():
            raise OutputError(f"{path} is a folder; give the name of a file")
        if target.exists() and not target.is_file():
            raise OutputError(f"{path} is not a regular file; choose another name")
        if target.exists() and not os.access(target, os.W_OK):
            raise OutputError(f"{path} is read-only; change its permissions or choose another name")
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror}); choose another name") from error
    return target


def _set_permissions(path: Path, like: os.stat_result) -> None:
    if os.geteuid() == 0:
        os.chown(path, like.st_uid, like.st_gid)
    else:
        with suppress(PermissionError):  # the user is not a member of the group
            os.chown(path, -1, like.st_gid)
    path.chmod(stat.S_IMODE(like.st_mode))
