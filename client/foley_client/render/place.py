"""Where a render reads and writes: paths of this machine, or URLs that fsspec knows, such as `s3://BUCKET/NAME`.

A store's address and keys come from where its own tools take them: `AWS_*` variables for S3.
"""

import fcntl
import posixpath
import re
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from foley.errors import MediaError, OutputError
from foley.output import replacing

MAX_BYTES = 8 << 30  # of a file that is fetched

# What a render writes beside its results.
LOCK = ".foley-render.lock"
SIDECAR = ".foley.json"  # after the result's name
FAILURES = "failures.jsonl"
REPORT = "report.html"
REPORTS = re.compile(r"report(-\d+)?\.html")  # all its pages
_CHUNK_BYTES = 1 << 20


def is_url(place: str) -> bool:
    """Whether `place` is a URL, and no path."""
    return "://" in place


def identity(place: str) -> object:
    """A value that is equal for two names of one file; None where there is no file. A URL is its own."""
    if is_url(place):
        return place
    try:
        status = Path(place).stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def exists(place: str) -> bool:
    """Whether there is a file. Raises MediaError where that cannot be found out."""
    try:
        if not is_url(place):
            return Path(place).is_file()
        store, path = _store(place)
        return bool(store.isfile(path))
    except Exception as error:  # every store has its own
        raise MediaError(f"{place} cannot be looked for ({_first_line(error)}); check the access to it") from error


@contextmanager
def fetched(place: str, folder: Path, name: str) -> Iterator[Path]:
    """The file at `place` as one of this machine: itself, or a copy in `folder` that is gone at the end.

    Raises:
        MediaError: it cannot be had, or is larger than `MAX_BYTES`.
    """
    if not is_url(place):
        yield Path(place)
        return
    copy = folder / name
    try:
        _fetch(place, copy)
        yield copy
    finally:
        copy.unlink(missing_ok=True)


def _fetch(place: str, copy: Path) -> None:
    left = MAX_BYTES
    try:
        store, path = _store(place)
        with store.open(path, "rb") as source, copy.open("wb") as target:
            while chunk := source.read(_CHUNK_BYTES):
                left -= len(chunk)
                if left < 0:
                    raise MediaError(f"{place} is larger than {MAX_BYTES >> 30} GiB; cut it into clips")
                target.write(chunk)
    except MediaError:
        raise
    except Exception as error:
        raise MediaError(f"{place} cannot be read ({_first_line(error)}); check its name and the access") from error


class Output:
    """The folder or bucket that results go to. Whatever is written appears whole, or not at all.

    Args:
        url: a path of this machine, or a URL.
        scratch: a folder of this machine for what is on its way to a bucket.

    Attributes:
        folder: where it is on this machine, None for a bucket.

    Raises:
        OutputError: no such kind of place is known here.
    """

    def __init__(self, url: str, scratch: Path) -> None:
        self.url = url.rstrip("/") or "/"
        self._scratch = scratch
        try:
            self._store, self._root = _store(self.url)
        except Exception as error:
            raise OutputError(f"{url} cannot be written to ({_first_line(error)}); choose another place") from error
        self.folder = Path(self._root) if "file" in self._store.protocol else None

    def identity(self, name: str) -> object:
        """See `identity`, of the file `name` here."""
        return identity(str(self.folder / name) if self.folder else f"{self.url}/{name}")

    def size(self, name: str) -> int | None:
        """How many bytes a file holds, None where there is none. Raises OutputError."""
        with self._translated(name):
            try:
                return int(self._store.info(f"{self._root}/{name}")["size"])
            except FileNotFoundError:
                return None

    def read(self, name: str) -> bytes | None:
        """The content of a file, None where there is none. Raises OutputError."""
        with self._translated(name):
            try:
                return bytes(self._store.cat_file(f"{self._root}/{name}"))
            except FileNotFoundError:
                return None

    def remove(self, name: str) -> None:
        """Remove a file, if it is there. Raises OutputError."""
        with self._translated(name), suppress(FileNotFoundError):
            self._store.rm_file(f"{self._root}/{name}")

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """A path to write to; what is there at the end is `name`, whole: renamed in a folder, one put to a bucket.

        Raises:
            OutputError: it cannot be written.
        """
        if self.folder:
            destination = self.folder / name
            with self._translated(name):
                destination.parent.mkdir(parents=True, exist_ok=True)
            with replacing(destination) as path:
                yield path
            return
        path = self._scratch / f"{secrets.token_hex(8)}{posixpath.splitext(name)[1]}"
        try:
            yield path
            with self._translated(name):
                self._store.put_file(str(path), f"{self._root}/{name}")
        finally:
            path.unlink(missing_ok=True)

    @contextmanager
    def claimed(self, names: list[str]) -> Iterator[None]:
        """Keep other renders on this machine out of the folder, and remove what killed ones left half-written.

        A bucket cannot be claimed, only tried: two renders into one do the same work twice, with the same results.

        Args:
            names: of the results; others' files are not touched.

        Raises:
            OutputError: it cannot be written to, or another render is at work there.
        """
        with ExitStack() as claim:
            with self._translated(LOCK):
                if self.folder:
                    root = self.folder
                    root.mkdir(parents=True, exist_ok=True)
                    lock = claim.enter_context((root / LOCK).open("wb"))
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    for folder in {(root / name).parent for name in names}:
                        for partial in folder.glob(".foley-*.partial*"):
                            partial.unlink(missing_ok=True)
                else:
                    self._store.pipe_file(f"{self._root}/{LOCK}", b"")
                    self._store.rm_file(f"{self._root}/{LOCK}")
            yield

    @contextmanager
    def _translated(self, name: str) -> Iterator[None]:
        try:
            yield
        except BlockingIOError as error:
            raise OutputError(f"another render writes to {self.url} now; wait for it, or stop it") from error
        except Exception as error:  # every store has its own
            raise OutputError(f"{self.url}/{name} cannot be written or read ({_first_line(error)})") from error


def _store(place: str) -> tuple[Any, str]:
    """fsspec's file system for `place`, and the path in it."""
    import fsspec  # of the extra `render`

    store, path = fsspec.core.url_to_fs(place)
    return store, path


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).partition("\n")[0]
