"""Detects that a file has changed."""

from pathlib import Path


def file_version(path: Path) -> tuple[int, ...]:
    """Return numbers that change when the file is replaced or written, or its permissions change.

    Raises:
        OSError: The file cannot be accessed.
    """
    status = path.stat()
    return status.st_ino, status.st_size, status.st_ctime_ns
