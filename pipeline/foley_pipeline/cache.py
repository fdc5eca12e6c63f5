"""A cache of results on disk: float32 arrays, keyed by a hash of all inputs.

A cache never raises: misses, corruption and I/O errors fall back to recomputing, and an entry that cannot be written is
skipped. Several processes may share a folder: entries are written atomically and are immutable.
"""

import hashlib
import json
import math
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from foley.envelope import Floats
from foley.errors import OutputError
from foley.output import replacing

MAX_BYTES = 64 * 2**20  # an envelope of 10 s takes 4 KB, an embedding 2 KB

_OURS = re.compile(r"[0-9a-f]{64}|\.foley-[0-9a-f]{16}\.partial")  # entries, and partial files of killed processes
_CHECKSUM_BYTES = 32


def default_folder() -> Path | None:
    """Return the default folder of the cache.

    Returns:
        `$FOLEY_CACHE/results`, else `$XDG_CACHE_HOME/foley/results`, else `~/.cache/foley/results`; None without a home
        directory. `foley-export fetch` uses sibling folders.
    """
    try:
        if chosen := os.environ.get("FOLEY_CACHE"):
            return Path(chosen).expanduser().absolute() / "results"
        xdg = Path(os.environ.get("XDG_CACHE_HOME", ""))
        return (xdg if xdg.is_absolute() else Path.home() / ".cache") / "foley" / "results"
    except (OSError, RuntimeError):  # no home directory, or no current directory
        return None


class Cache:
    """An LRU cache of arrays in a folder. Safe to use from several threads and processes.

    Args:
        folder: The folder; it is created on the first write.
        max_bytes: Maximum size of all entries; the least recently used ones are removed first.
    """

    def __init__(self, folder: Path, max_bytes: int = MAX_BYTES) -> None:
        self.folder = folder
        self.max_bytes = max_bytes

    def get(self, about: Sequence[str], shape: tuple[int, ...]) -> Floats | None:
        """Return the array of shape `shape` that was `put` under the key `about`, bit-identical; None on a miss."""
        name = _name(about, shape)
        path = self.folder / name
        size = _CHECKSUM_BYTES + 4 * math.prod(shape)
        try:
            if not path.is_file():  # opening a pipe would block
                return None
            with path.open("rb") as file:
                content = file.read(size + 1)
        except OSError:
            return None
        checksum, values = content[:_CHECKSUM_BYTES], content[_CHECKSUM_BYTES:]
        if len(content) != size or checksum != _checksum(name, values):
            return None
        with suppress(OSError):  # the folder may be read-only
            os.utime(path)
        array = np.frombuffer(values, "<f4").reshape(shape).astype(np.float32)
        return array if np.isfinite(array).all() else None

    def put(self, about: Sequence[str], array: Floats) -> None:
        """Store `array` under the key `about`, which lists all of its inputs."""
        name, values = _name(about, array.shape), array.astype("<f4").tobytes()
        if _CHECKSUM_BYTES + len(values) > self.max_bytes:
            return
        with suppress(OSError, OutputError):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            entry = self.folder / name
            if entry.is_symlink():  # its target is not an entry and must not be overwritten
                entry.unlink()
            with replacing(entry) as path:
                path.write_bytes(_checksum(name, values) + values)
            self._shrink()

    def _shrink(self) -> None:
        """Remove the least recently used entries until the total size is within the limit."""
        entries = []
        for entry in os.scandir(self.folder):
            if _OURS.fullmatch(entry.name):  # the folder may contain other files
                with suppress(FileNotFoundError):  # another process removed it
                    status = entry.stat(follow_symlinks=False)
                    entries.append((status.st_mtime_ns, status.st_size, entry.path))
        total = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if total <= self.max_bytes:
                break
            Path(path).unlink(missing_ok=True)
            total -= size


def _name(about: Sequence[str], shape: tuple[int, ...]) -> str:
    """Return the file name of an entry; a hash, so that it contains no user input."""
    return hashlib.sha256(json.dumps([list(about), list(shape)]).encode()).hexdigest()


def _checksum(name: str, values: bytes) -> bytes:
    """Return a checksum of the values and the name, so that a renamed entry is invalid."""
    return hashlib.sha256(name.encode() + values).digest()
