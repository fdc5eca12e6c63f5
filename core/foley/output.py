"""Writing files: checked before long work starts, and whole or not at all when it ends."""

import os
import secrets
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import av

from foley.errors import OutputError


def check_destination(path: Path, endings: Collection[str], source: Path | None = None) -> None:
    """Raise OutputError when a result cannot be written to `path`; call it before long work starts.

    Its name must end in one of `endings`, its folder must exist and be writable, and it must not be the file `source`.
    A file that is there must be a regular one that may be written to; a link is followed.
    """
    if path.suffix.lower() not in endings:
        raise OutputError(
            f"{path} has an ending of no known kind; give a name that ends in one of {', '.join(endings)}"
        )
    target = _target(path)
    try:
        with suppress(FileNotFoundError, NotADirectoryError):
            target.stat()  # is_dir() and exists() answer False to any error from Python 3.14 on
        if not target.parent.is_dir():
            raise OutputError(f"the folder {target.parent} does not exist; create it or choose another")
        if not os.access(target.parent, os.W_OK | os.X_OK):
            raise OutputError(f"the folder {target.parent} is not writable; choose another or change its permissions")
        if source is not None and path.exists() and source.exists() and path.samefile(source):
            raise OutputError(f"{path} is the source itself, which is never overwritten; choose another name")
    except OSError as error:  # a name that is too long, a folder that may not be looked into
        raise OutputError(f"{path} cannot be written ({error.strerror}); choose another name") from error


@contextmanager
def replacing(destination: Path) -> Iterator[Path]:
    """Give a name to write to; what is there takes the place of `destination` if all goes well.

    The name ends as `destination` does. Where `destination` is a link, the link stays and the file that it points to is
    replaced; other hard links to that file keep the old content. A file that is replaced keeps its permissions and,
    as far as this process may set them, its owner and group. Several files at once, all or none: enter several of these
    on one ExitStack.

    Raises:
        OutputError: the file cannot be written or put in its place.
    """
    target = _target(destination)
    temporary = target.parent.resolve() / f".foley-{secrets.token_hex(8)}.partial{destination.suffix}"
    try:
        replaced = target.stat() if target.exists() else None
        if replaced:  # nobody may read the new content who may not read the old one
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
    """The file that is written for `path`: itself, or where it is a link, what that points to.

    Raises:
        OutputError: it is there, and is no regular file that may be written to.
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
        with suppress(PermissionError):  # a group that this user is not in
            os.chown(path, -1, like.st_gid)
    path.chmod(stat.S_IMODE(like.st_mode))
