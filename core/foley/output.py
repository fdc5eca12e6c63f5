"""Writing files: checked before long work starts, and whole or not at all when it ends."""

import os
import secrets
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import av

from foley.errors import OutputError


def check_destination(path: Path, endings: Collection[str], source: Path | None = None) -> None:
    """Raise OutputError when a result cannot be written to `path`; call it before long work starts.

    Its name must end in one of `endings`, its folder must exist and be writable, and it must not be the file `source`.
    """
    if path.suffix.lower() not in endings:
        raise OutputError(
            f"{path} has an ending of no known kind; give a name that ends in one of {', '.join(endings)}"
        )
    try:
        with suppress(FileNotFoundError, NotADirectoryError):
            path.stat()  # is_dir() and exists() answer False to any error from Python 3.14 on
        if path.is_dir():
            raise OutputError(f"{path} is a folder; give the name of a file")
        if not path.parent.is_dir():
            raise OutputError(f"the folder {path.parent} does not exist; create it or choose another")
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise OutputError(f"the folder {path.parent} is not writable; choose another or change its permissions")
        if source is not None and path.exists() and source.exists() and path.samefile(source):
            raise OutputError(f"{path} is the source itself, which is never overwritten; choose another name")
    except OSError as error:  # a name that is too long, a folder that may not be looked into
        raise OutputError(f"{path} cannot be written ({error.strerror}); choose another name") from error


@contextmanager
def replacing(destination: Path) -> Iterator[Path]:
    """Give a name to write to, in the folder of `destination`; what is there takes its place if all goes well.

    The name ends as `destination` does. Several files at once, all or none: enter several of these on one ExitStack.

    Raises:
        OutputError: the file cannot be written or put in its place.
    """
    temporary = destination.parent.resolve() / f".foley-{secrets.token_hex(8)}.partial{destination.suffix}"
    try:
        yield temporary
        temporary.replace(destination)
    except (OSError, av.FFmpegError) as error:
        reason = error.strerror
        raise OutputError(f"{destination} cannot be written ({reason}); check free space and permissions") from error
    finally:
        temporary.unlink(missing_ok=True)
