"""Storage for the media of jobs: a folder, or an S3-compatible bucket. Writes are atomic.

The endpoint and credentials of a bucket come from the standard `AWS_*` environment variables. Nothing is removed that
this service has not written: ids have a fixed form, the database lists them, and a marker names the owning service.
"""

import asyncio
import json
import logging
import os
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, ObjectStore, S3Store

from foley.errors import MediaUnavailable, OutputError, ServerFailure

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

log = logging.getLogger(__name__)

MARKER = "foley-media.json"
RETRY_AFTER_S = 30.0
TIMEOUT_S = 600.0  # of one file
STALL_S = 60.0  # of small ones, and between two parts of a file
TIMEOUTS: "ClientConfig" = {"timeout": timedelta(seconds=600), "connect_timeout": timedelta(seconds=5)}
RETRIES: "RetryConfig" = {"max_retries": 4, "retry_timeout": timedelta(seconds=60)}
CHUNK_BYTES = 64 * 1024  # a response that is not read holds several copies of one


class MediaStore:
    """Stores files by job and name, such as `0a1b…/video`.

    Methods raise `ServerFailure` for a missing file and `MediaUnavailable` for other errors of the storage.

    Args:
        location: A folder, which is created, or `s3://BUCKET/PREFIX`.
        on_error: Called after every failed access.

    Raises:
        OutputError: The location cannot be used.
    """

    def __init__(self, location: str, on_error: Callable[[], object] = lambda: None) -> None:
        self._location = location
        self._folder = None if location.startswith("s3://") else Path(location).absolute()
        self._on_error = on_error
        try:
            self._store: ObjectStore = (
                LocalStore(self._folder, mkdir=True, automatic_cleanup=True)
                if self._folder
                else S3Store.from_url(location, client_options=_client_options(), retry_config=RETRIES)
            )
            obstore.list_with_delimiter(self._store)
        except (BaseError, OSError, ValueError) as error:
            raise OutputError(
                f"media cannot be stored in {location} ({_first_line(error)}); choose another location"
            ) from error

    async def mark(self, service_id: str) -> None:
        """Mark the location as that of a service.

        Raises:
            OutputError: It belongs to another service.
        """
        document = json.dumps({"service": service_id}).encode()
        with self._translate_errors():
            try:  # not with mode="create", which some servers ignore
                found = bytes(await (await obstore.get_async(self._store, MARKER)).bytes_async())
            except FileNotFoundError:
                await obstore.put_async(self._store, MARKER, document)
                return
        if found != document:
            raise OutputError(
                f"{self._location} holds the media of another service, or of this one before its database was lost; "
                f"choose another location, or remove {MARKER} there"
            )

    async def put(self, id: str, name: str, content: Path | bytes) -> None:
        """Store a file, replacing any with the same name."""
        with self._translate_errors():
            timeout_s = TIMEOUT_S if isinstance(content, Path) else STALL_S
            await asyncio.wait_for(obstore.put_async(self._store, f"{_checked(id)}/{name}", content), timeout_s)

    async def get(self, id: str, name: str) -> bytes:
        """Return the content of a file."""
        return b"".join([chunk async for chunk in self.read(id, name)])

    async def read(self, id: str, name: str) -> AsyncIterator[bytes]:
        """Yield the content of a file in chunks of `CHUNK_BYTES`; the last can be smaller."""
        with self._translate_errors():
            getting = obstore.get_async(self._store, f"{_checked(id)}/{name}")
            pieces = aiter((await asyncio.wait_for(getting, STALL_S)).stream(min_chunk_size=CHUNK_BYTES))
            content = bytearray()
            while piece := await asyncio.wait_for(anext(pieces, b""), STALL_S):
                content += memoryview(piece)
                while len(content) >= CHUNK_BYTES:  # pieces of a bucket have any size, and would divide samples
                    yield bytes(content[:CHUNK_BYTES])
                    del content[:CHUNK_BYTES]
            if content:
                yield bytes(content)

    async def fetch(self, id: str, name: str, path: Path) -> None:
        """Write a copy of a file to `path`; a hard link, if the storage is a folder on the same file system."""
        if self._folder:
            with suppress(OSError):
                path.hardlink_to(self._folder / _checked(id) / name)
                return
        with path.open("wb") as file:
            async for chunk in self.read(id, name):
                file.write(chunk)

    async def remove_files(self, id: str, *names: str) -> None:
        """Delete files of a job; those that do not exist are ignored."""
        with self._translate_errors():
            for name in names:
                with suppress(FileNotFoundError):
                    await obstore.delete_async(self._store, f"{_checked(id)}/{name}")

    async def remove(self, id: str, folder: str = "") -> None:
        """Delete all files of a job, or all in a folder of it."""
        with self._translate_errors():
            async for page in obstore.list(self._store, f"{_checked(id)}/{folder}".rstrip("/")):
                for one in page:
                    with suppress(FileNotFoundError):
                        await obstore.delete_async(self._store, one["path"])

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise ServerFailure(
                "a media file of this generation is missing; report it to the server's operator"
            ) from error
        except (BaseError, OSError, asyncio.TimeoutError) as error:
            self._on_error()
            # only logged, as it contains URLs that callers must not see
            log.error("media storage: %s", _first_line(error))
            unavailable = MediaUnavailable("the media storage is unavailable; try again later")
            unavailable.retry_after_s = RETRY_AFTER_S
            raise unavailable from error


def _client_options() -> "ClientConfig":
    """Return the options of the HTTP client; given here, they replace those of the environment."""
    return {**TIMEOUTS, "allow_http": os.environ.get("AWS_ALLOW_HTTP", "").lower() in ("1", "true")}


def _checked(id: str) -> str:
    """Return `id`, which names a folder.

    Raises:
        ValueError: It is not the id of a job.
    """
    if not re.fullmatch("[0-9a-f]{32}", id):
        raise ValueError(f"{id!r} is not the id of a job")
    return id


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
