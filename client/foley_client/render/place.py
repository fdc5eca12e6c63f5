"""Where a render reads and writes: paths of this machine, or URLs that fsspec knows. A file appears whole or not at all."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import fsspec

from foley.errors import MediaError, OutputError
from foley.output import replacing


@contextmanager
def fetched(url: str | None, folder: Path, name: str) -> Iterator[Path | None]:
    """The file at `url` as one of this machine: itself, or a copy in `folder` that is gone at the end; None for None.

    Raises:
        MediaError: it cannot be had.
    """
    if url is None or "://" not in url:
        yield None if url is None else Path(url)
        return
    copy = folder / name
    try:
        with fsspec.open(url, "rb") as source, copy.open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
    except Exception as error:  # every store has its own
        raise MediaError(f"{url} cannot be read ({error}); check its name and the access to it") from error
    try:
        yield copy
    finally:
        copy.unlink(missing_ok=True)


class Output:
    """The folder or bucket that results go to.

    Raises:
        OutputError: it cannot be written to.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        try:
            self._store: Any
            self._store, self._root = fsspec.core.url_to_fs(self.url)
            self._local = "file" in self._store.protocol
            self._store.makedirs(self._root, exist_ok=True)
        except Exception as error:
            raise OutputError(f"{url} cannot be written to ({error}); choose another place") from error

    def exists(self, name: str) -> bool:
        """Whether there is a file of this name."""
        return bool(self._store.exists(f"{self._root}/{name}"))

    def read(self, name: str) -> bytes | None:
        """The content of a file, None where there is none. Raises OutputError."""
        try:
            return bytes(self._store.cat_file(f"{self._root}/{name}"))
        except FileNotFoundError:
            return None
        except Exception as error:
            raise OutputError(f"{self.url}/{name} cannot be read ({error})") from error

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """A path to write to; what is there at the end is `name`, whole: renamed in a folder, one put to a bucket.

        Raises:
            OutputError: it cannot be written.
        """
        if self._local:
            destination = Path(self._root) / name
            try:
                destination.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise OutputError(f"{destination.parent} cannot be made ({error.strerror})") from error
            with replacing(destination) as path:
                yield path
            return
        with TemporaryDirectory(prefix="foley-render-") as folder:
            path = Path(folder) / Path(name).name
            yield path
            try:
                self._store.put_file(str(path), f"{self._root}/{name}")
            except Exception as error:
                raise OutputError(f"{self.url}/{name} cannot be written ({error})") from error
