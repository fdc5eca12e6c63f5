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
        place: A folder, which is created, or `s3://BUCKET/PREFIX`.

    Raises:
        OutputError: The location cannot be used.
    """

    def __init__(self, place: str) -> None:
        self._place = place
        try:
            self._store: ObjectStore = (
                S3Store.from_url(place)
                if place.startswith("s3://")
                else LocalStore(Path(place), mkdir=True, automatic_cleanup=True)
            )
            obstore.list_with_delimiter(self._store)
        except (BaseError, OSError, ValueError) as error:
            raise OutputError(
                f"media cannot be kept in {place} ({_first_line(error)}); choose another place"
            ) from error

    def put(self, id: str, name: str, content: Path | bytes) -> None:
        """Store a file, replacing any with the same name."""
        with self._translated():
            obstore.put(self._store, f"{id}/{name}", content)

    def get(self, id: str, name: str) -> bytes:
        """Return the content of a file."""
        with self._translated():
            return bytes(obstore.get(self._store, f"{id}/{name}").bytes())

    def fetch(self, id: str, name: str, path: Path) -> None:
        """Stream the content of a file to `path`."""
        with self._translated(), path.open("wb") as file:
            for piece in obstore.get(self._store, f"{id}/{name}").stream():
                file.write(piece)

    def remove(self, id: str) -> None:
        """Delete all files of a generation."""
        with self._translated():
            for page in obstore.list(self._store, id):
                obstore.delete(self._store, [one["path"] for one in page])

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise ServerFailure("a file of this generation is gone; tell the server's operator") from error
        except (BaseError, OSError) as error:
            log.error("media: %s", _first_line(error))  # logged only: it contains URLs that callers must not see
            unavailable = MediaUnavailable("the place where media are kept does not answer; try again later")
            unavailable.retry_after_s = RETRY_AFTER_S
            raise unavailable from error


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
