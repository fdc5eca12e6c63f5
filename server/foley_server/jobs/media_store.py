"""Storage for the media of long-running generations: a folder, or an S3-compatible bucket. Writes are atomic.

The endpoint and credentials of a bucket come from the standard `AWS_*` environment variables.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, ObjectStore, S3Store

from foley.errors import MediaUnavailable, OutputError, ServerFailure

log = logging.getLogger(__name__)

RETRY_AFTER_S = 30.0


class MediaStore:
    """Stores files by generation and name, such as `0a1b/video`.

    Methods raise `ServerFailure` for a missing file and `MediaUnavailable` for other errors of the storage.

    Args:
        location: A folder, which is created, or `s3://BUCKET/PREFIX`.

    Raises:
        OutputError: The location cannot be used.
    """

    def __init__(self, location: str) -> None:
        self._location = location
        try:
            self._store: ObjectStore = (
                S3Store.from_url(location)
                if location.startswith("s3://")
                else LocalStore(Path(location), mkdir=True, automatic_cleanup=True)
            )
            obstore.list_with_delimiter(self._store)
        except (BaseError, OSError, ValueError) as error:
            raise OutputError(
                f"media cannot be stored in {location} ({_first_line(error)}); choose another location"
            ) from error

    def put(self, id: str, name: str, content: Path | bytes) -> None:
        """Store a file, replacing any with the same name."""
        with self._translate_errors():
            obstore.put(self._store, f"{id}/{name}", content)

    def get(self, id: str, name: str) -> bytes:
        """Return the content of a file."""
        with self._translate_errors():
            return bytes(obstore.get(self._store, f"{id}/{name}").bytes())

    def fetch(self, id: str, name: str, path: Path) -> None:
        """Stream the content of a file to `path`."""
        with self._translate_errors(), path.open("wb") as file:
            for piece in obstore.get(self._store, f"{id}/{name}").stream():
                file.write(piece)

    def remove(self, id: str) -> None:
        """Delete all files of a generation."""
        with self._translate_errors():
            for page in obstore.list(self._store, id):
                obstore.delete(self._store, [one["path"] for one in page])

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise ServerFailure(
                "a media file of this generation is missing; report it to the server's operator"
            ) from error
        except (BaseError, OSError) as error:
            log.error(
                "media storage: %s", _first_line(error)
            )  # logged only: it contains URLs that callers must not see
            unavailable = MediaUnavailable("the media storage is unavailable; try again later")
            unavailable.retry_after_s = RETRY_AFTER_S
            raise unavailable from error


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
