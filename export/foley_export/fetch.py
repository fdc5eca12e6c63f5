"""The cache of published files: missing files are downloaded, existing ones verified.

A file without a published hash is trusted on first use: its sha256 is written beside it, in the format of
`sha256sum --check`, and later copies must match.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from foley.bundle import file_sha256
from foley.errors import DownloadError, SettingError
from foley_export.download import Progress, download, sha256_mismatch
from foley_export.partial import writing
from foley_export.published import PublishedFile


def cache_folder() -> Path:
    """Return the cache folder: `$FOLEY_CACHE`, else `foley` in `$XDG_CACHE_HOME` or `~/.cache`."""
    if chosen := os.environ.get("FOLEY_CACHE"):
        return Path(chosen).expanduser().absolute()
    xdg = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (xdg if xdg.is_absolute() else Path.home() / ".cache") / "foley"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Create `folder` and lock it against other fetching processes.

    Raises:
        DownloadError: If another process holds the lock.
        OutputError: If the folder cannot be written.
    """
    lock = FileLock(folder / ".lock", timeout=0)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
        except Timeout as error:
            raise DownloadError(f"another `foley-export fetch` is using {folder}; wait until it finishes") from error
    try:
        yield
    finally:
        lock.release()


def fetch(file: PublishedFile, folder: Path, mirror: str | None, progress: Progress, backoff_s: float = 1.0) -> Path:
    """Download `file` to the cache if it is missing, verify it and return its path.

    Args:
        file: The file to fetch.
        folder: The cache folder, which must be `locked`.
        mirror: Base URL used instead of the file's URLs; paths below it are those of the cache.
        progress: Called with the bytes so far and the total.
        backoff_s: First back-off delay in seconds; see `download`.

    Raises:
        DownloadError: If the file cannot be downloaded or is not the published one.
        OutputError: If the cache cannot be written.
        SettingError: If `mirror` is not an HTTP(S) URL.
    """
    path = folder / file.path
    record = path.with_name(f"{path.name}.sha256")
    sha256 = {file.sha256: "its publisher"} | {first: str(record) for first in _recorded(record)}
    if path.exists():
        digest = file_sha256(path)
        if mismatch := sha256_mismatch(digest, sha256):
            raise DownloadError(f"{path} is not the published file: {mismatch}; remove it to download it again")
    else:
        with writing(path):
            path.parent.mkdir(exist_ok=True)
        digest = _download(file, path, mirror, sha256, progress, backoff_s)
    with writing(record):
        record.write_text(f"{digest}  {path.name}\n")
    return path


def _download(
    file: PublishedFile,
    path: Path,
    mirror: str | None,
    sha256: dict[str, str],
    progress: Progress,
    backoff_s: float,
) -> str:
    """Download from the mirror or the first URL that has the file; if all fail, raise the first URL's error."""
    if mirror is not None and not mirror.startswith(("https://", "http://")):
        raise SettingError(
            f"the mirror {mirror!r} is not an HTTP(S) URL; pass a URL that starts with https:// or http://"
        )
    urls = file.urls if mirror is None else (f"{mirror.rstrip('/')}/{file.path}",)
    errors: list[DownloadError] = []
    for url in urls:
        try:
            return download(url, path, file.max_bytes, sha256, progress, backoff_s)
        except DownloadError as error:
            errors.append(error)
    raise errors[0]


def _recorded(record: Path) -> list[str]:
    """Return the sha256 recorded by an earlier run, if any."""
    try:
        return record.read_text().split()[:1]
    except FileNotFoundError:
        return []
