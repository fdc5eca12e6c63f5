"""Results of earlier calls, on disk: float32 arrays, each under a hash of everything that it was made from.

A cache never fails a call: what is missing, damaged or closed to us is made again, what cannot be written is not kept.
Several processes may share a folder: an entry appears whole, and is never changed.
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

MAX_BYTES = 64 * 2**20  # an envelope of 10 s takes 4 KB, an embedding 2

_OURS = re.compile(r"[0-9a-f]{64}|\.foley-[0-9a-f]{16}\.partial")  # entries, and what a killed process left of one
_CHECKSUM_BYTES = 32


def default_folder() -> Path | None:
    """`results` in `$FOLEY_CACHE`, else in `foley` in `$XDG_CACHE_HOME` or `~/.cache`; None where there is no home.

    `foley-export fetch` keeps its files beside it.
    """
    try:
        if chosen := os.environ.get("FOLEY_CACHE"):
            return Path(chosen).expanduser().absolute() / "results"
        xdg = Path(os.environ.get("XDG_CACHE_HOME", ""))
        return (xdg if xdg.is_absolute() else Path.home() / ".cache") / "foley" / "results"
    except (OSError, RuntimeError):  # no home, or no current folder
        return None


class Cache:
    """A folder of arrays, made when it is first written to. Safe to use from several threads and processes.

    Args:
        max_bytes: of all entries together; those that were not used for the longest time are removed first.
    """

    def __init__(self, folder: Path, max_bytes: int = MAX_BYTES) -> None:
        self.folder = folder
        self.max_bytes = max_bytes

    def get(self, about: Sequence[str], shape: tuple[int, ...]) -> Floats | None:
        """The array of this `shape` that was `put` under `about`, to the last bit; None if there is none to be had."""
        name = _name(about, shape)
        path = self.folder / name
        size = _CHECKSUM_BYTES + 4 * math.prod(shape)
        try:
            if not path.is_file():  # opening a pipe would wait
                return None
            with path.open("rb") as file:
                content = file.read(size + 1)
        except OSError:
            return None
        checksum, values = content[:_CHECKSUM_BYTES], content[_CHECKSUM_BYTES:]
        if len(content) != size or checksum != _checksum(name, values):
            return None
        with suppress(OSError):  # a folder that is only read
            os.utime(path)
        array = np.frombuffer(values, "<f4").reshape(shape).astype(np.float32)
        return array if np.isfinite(array).all() else None

    def put(self, about: Sequence[str], array: Floats) -> None:
        """Keep `array` under `about`: every word of what it was made from."""
        name, values = _name(about, array.shape), array.astype("<f4").tobytes()
        if _CHECKSUM_BYTES + len(values) > self.max_bytes:
            return
        with suppress(OSError, OutputError):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            entry = self.folder / name
            if entry.is_symlink():  # what it points to is no entry, and must not be written to
                entry.unlink()
            with replacing(entry) as path:
                path.write_bytes(_checksum(name, values) + values)
            self._shrink()

    def _shrink(self) -> None:
        """Remove the entries that were not used for the longest time until the others keep to the limit."""
        entries = []
        for entry in os.scandir(self.folder):
            if _OURS.fullmatch(entry.name):  # the folder may be one that holds other things too
                with suppress(FileNotFoundError):  # another process was faster
                    status = entry.stat(follow_symlinks=False)
                    entries.append((status.st_mtime_ns, status.st_size, entry.path))
        total = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if total <= self.max_bytes:
                break
            Path(path).unlink(missing_ok=True)
            total -= size


def _name(about: Sequence[str], shape: tuple[int, ...]) -> str:
    """The file's name: nothing of what the user gave is in it."""
    return hashlib.sha256(json.dumps([list(about), list(shape)]).encode()).hexdigest()


def _checksum(name: str, values: bytes) -> bytes:
    """Over the name too: an entry under another's name is none."""
    return hashlib.sha256(name.encode() + values).digest()
