"""SHA-256 of files, cached per process until the file changes."""

from functools import lru_cache
from pathlib import Path

from foley.bundle import file_sha256


def content_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hex."""
    status = path.stat()
    state = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return _sha256(path, state)


@lru_cache(maxsize=64)
def _sha256(path: Path, state: tuple[int, ...]) -> str:
    return file_sha256(path)
