"""Storage of a render: local paths, or URLs that fsspec supports, such as `s3://BUCKET/NAME`.

Endpoints and credentials of a store are configured as for its own tools, for S3 with the `AWS_*` variables.
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
from foley.output import remove_abandoned, replacing
from foley.scratch import explained

MAX_BYTES = 8 << 30  # of a downloaded file

# Files that a render writes beside its results.
LOCK = ".foley-render.lock"
SIDECAR = ".foley.json"  # appended to the name of the result
FAILURES = "failures.jsonl"
REPORT = "report.html"
REPORTS = re.compile(r"report(-\d+)?\.html")  # all pages of the report
_CHUNK_BYTES = 1 << 20


def is_url(url_or_path: str) -> bool:
    """Return whether `url_or_path` is a URL rather than a path."""
    return "://" in url_or_path


def identity(url_or_path: str) -> object:
    """Return a value that is equal for all paths of a file: device and inode, or None if there is no file.

    The identity of a URL is the URL.
    """
    if is_url(url_or_path):
        return url_or_path
    try:
        status = Path(url_or_path).stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def exists(url_or_path: str) -> bool:
    """Return whether `url_or_path` is a file.

    Raises:
        MediaError: The store cannot be accessed.
    """
    try:
        if not is_url(url_or_path):
            return Path(url_or_path).is_file()
        store, path = _store(url_or_path)
        return bool(store.isfile(path))
    except Exception as error:  # each fsspec backend has its own exceptions
        raise MediaError(
            f"cannot access {url_or_path} ({_first_line(error)}); check the credentials and permissions"
        ) from error


@contextmanager
def fetched(url_or_path: str, folder: Path, name: str) -> Iterator[Path]:
    """Provide the file at `url_or_path` as a local file; a URL is downloaded, and the copy is removed on exit.

    Args:
        url_or_path: A path or a URL.
        folder: Local folder for the copy.
        name: File name of the copy.

    Yields:
        The local path.

    Raises:
        MediaError: The URL cannot be read, or the file is larger than `MAX_BYTES`.
    """
    if not is_url(url_or_path):
        yield Path(url_or_path)
        return
    copy = folder / name
    try:
        _fetch(url_or_path, copy)
        yield copy
    finally:
        copy.unlink(missing_ok=True)


def _fetch(url_or_path: str, copy: Path) -> None:
    left = MAX_BYTES
    try:
        store, path = _store(url_or_path)
        with store.open(path, "rb") as source, copy.open("wb") as target:
            while chunk := source.read(_CHUNK_BYTES):
                left -= len(chunk)
                if left < 0:
                    raise MediaError(f"{url_or_path} is larger than {MAX_BYTES >> 30} GiB; split it")
                with explained():
                    target.write(chunk)
                    target.flush()
    except (MediaError, OutputError):
        raise
    except Exception as error:
        failure = MediaError(f"cannot read {url_or_path} ({_first_line(error)}); check the name and the permissions")
        failure.retry_after_s = 1.0  # the store may be unavailable temporarily
        raise failure from error


class Output:
    """Output folder or bucket of a render. Files are written atomically.

    Args:
        url: A local path or a URL.
        scratch: Local folder for files that are to be uploaded to a bucket.

    Attributes:
        url: The path or URL, without trailing slashes.
        folder: The local folder; None for a bucket.

    Raises:
        OutputError: The kind of URL is not supported.
    """

    def __init__(self, url: str, scratch: Path) -> None:
        self.url = url.rstrip("/") or "/"
        self._scratch = scratch
        try:
            self._store, self._root = _store(self.url)
        except Exception as error:
            raise OutputError(f"cannot write to {url} ({_first_line(error)}); use another folder or URL") from error
        self.folder = Path(self._root) if "file" in self._store.protocol else None

    def identity(self, name: str) -> object:
        """Return the `identity` of the file `name` in this output."""
        return identity(str(self.folder / name) if self.folder else f"{self.url}/{name}")

    def size(self, name: str) -> int | None:
        """Return the size of a file in bytes, or None if it does not exist.

        Raises:
            OutputError: The store cannot be accessed.
        """
        with self._translated(name):
            try:
                return int(self._store.info(f"{self._root}/{name}")["size"])
            except FileNotFoundError:
                return None

    def read(self, name: str) -> bytes | None:
        """Return the content of a file, or None if it does not exist.

        Raises:
            OutputError: The file cannot be read.
        """
        with self._translated(name):
            try:
                return bytes(self._store.cat_file(f"{self._root}/{name}"))
            except FileNotFoundError:
                return None

    def remove(self, name: str) -> None:
        """Remove a file if it exists.

        Raises:
            OutputError: The file cannot be removed.
        """
        with self._translated(name), suppress(FileNotFoundError):
            self._store.rm_file(f"{self._root}/{name}")

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """Write a file atomically: with a rename in a folder, with one upload in a bucket.

        Args:
            name: Name of the file.

        Yields:
            A temporary local path to write to, which becomes `name` on exit without an error.

        Raises:
            OutputError: The file cannot be written.
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
            with replacing(path) as partial:
                yield partial
            with self._translated(name):
                self._store.put_file(str(path), f"{self._root}/{name}")
        finally:
            path.unlink(missing_ok=True)

    @contextmanager
    def claimed(self, names: list[str]) -> Iterator[None]:
        """Lock the folder against other renders on this machine, and remove partial files of killed processes.

        A bucket cannot be locked; only write access is checked. Two concurrent renders into one bucket do the same work
        twice, with the same results.

        Args:
            names: Names of the results; partial files are removed only from their folders.

        Raises:
            OutputError: The output is not writable, or another render holds the lock.
        """
        with ExitStack() as claim:
            with self._translated(LOCK):
                if self.folder:
                    root = self.folder
                    root.mkdir(parents=True, exist_ok=True)
                    lock = claim.enter_context((root / LOCK).open("wb"))
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    for folder in {(root / name).parent for name in names}:
                        remove_abandoned(folder)
                else:
                    self._store.pipe_file(f"{self._root}/{LOCK}", b"")
                    self._store.rm_file(f"{self._root}/{LOCK}")
            yield

    @contextmanager
    def _translated(self, name: str) -> Iterator[None]:
        try:
            yield
        except BlockingIOError as error:
            raise OutputError(
                f"another render is writing to {self.url}; wait until it has finished, or stop it"
            ) from error
        except Exception as error:  # each fsspec backend has its own exceptions
            raise OutputError(
                f"cannot read or write {self.url}/{name} ({_first_line(error)}); check the permissions"
            ) from error


def _store(url_or_path: str) -> tuple[Any, str]:
    """Return the fsspec file system of `url_or_path`, and the path in it."""
    import fsspec  # extra `render`

    store, path = fsspec.core.url_to_fs(url_or_path)
    return store, path


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).partition("\n")[0]
