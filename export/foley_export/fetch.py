"""The cache of published files: what is missing is downloaded, what is there is checked.

A file whose whole hash nobody published is trusted the first time: its sha256 is written beside it, in the form that
`sha256sum --check` reads, and every later copy must be the same.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from foley.bundle import file_sha256
from foley.errors import DownloadError, SettingError
from foley_export.download import Progress, download, mismatched
from foley_export.partial import writing
from foley_export.published import PublishedFile


def cache_folder() -> Path:
    """Where published files are kept: `$FOLEY_CACHE`, else `foley` in `$XDG_CACHE_HOME` or `~/.cache`."""
    if chosen := os.environ.get("FOLEY_CACHE"):
        return Path(chosen).expanduser().absolute()
    xdg = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (xdg if xdg.is_absolute() else Path.home() / ".cache") / "foley"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make `folder` and keep other processes from fetching into it.

    Raises:
        DownloadError: another one is at it.
        OutputError: the folder cannot be written.
    """
    lock = FileLock(folder / ".lock", timeout=0)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
        except Timeout as error:
            raise DownloadError(f"another foley-export fetch is at work in {folder}; wait for it to end") from error
    try:
        yield
    finally:
        lock.release()


def fetch(file: PublishedFile, folder: Path, mirror: str | None, progress: Progress, pause_s: float = 1.0) -> Path:
    """The published `file` in the cache `folder`, which is `locked`, downloaded if it is not there.

    Args:
        mirror: an address below which files lie as in the cache, asked instead of their homes.

    Raises:
        DownloadError: it cannot be had, or is not the published file.
        OutputError: the cache cannot be written.
        SettingError: `mirror` is no address of the web.
    """
    path = folder / file.path
    record = path.with_name(f"{path.name}.sha256")
    sha256 = {file.sha256: "its home"} | {first: str(record) for first in _recorded(record)}
    if path.exists():
        digest = file_sha256(path)
        if mismatch := mismatched(digest, sha256):
            raise DownloadError(f"{path} is not the published file: {mismatch}; remove it to download it again")
    else:
        with writing(path):
            path.parent.mkdir(exist_ok=True)
        digest = _download(file, path, mirror, sha256, progress, pause_s)
    with writing(record):
        record.write_text(f"{digest}  {path.name}\n")
    return path


def _download(
    file: PublishedFile,
    path: Path,
    mirror: str | None,
    sha256: dict[str, str],
    progress: Progress,
    pause_s: float,
) -> str:
    """From the mirror, or the first home that has it; when none has, what the first one answered is the error."""
    if mirror is not None and not mirror.startswith(("https://", "http://")):
        raise SettingError(f"the mirror is {mirror!r}; give an address that starts with https:// or http://")
    homes = file.homes if mirror is None else (f"{mirror.rstrip('/')}/{file.path}",)
    errors: list[DownloadError] = []
    for home in homes:
        try:
            return download(home, path, file.max_bytes, sha256, progress, pause_s)
        except DownloadError as error:
            errors.append(error)
    raise errors[0]


def _recorded(record: Path) -> list[str]:
    """The sha256 that an earlier run has written down, if one has."""
    try:
        return record.read_text().split()[:1]
    except FileNotFoundError:
        return []
