"""Where the media of long-running generations are kept: a folder, or an S3-compatible bucket. All whole, or absent.

A bucket's address and keys come from the usual `AWS_*` variables.
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
    """Files by generation and name, such as `0a1b/video`.

    Args:
        place: a folder, which is made, or `s3://BUCKET/PREFIX`.

    Raises:
        OutputError: it cannot be used.
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
        """Keep a file; one of this name is replaced."""
        with self._translated():
            obstore.put(self._store, f"{id}/{name}", content)

    def get(self, id: str, name: str) -> bytes:
        """A file's content."""
        with self._translated():
            return bytes(obstore.get(self._store, f"{id}/{name}").bytes())

    def fetch(self, id: str, name: str, path: Path) -> None:
        """Write a file's content to `path`, in pieces."""
        with self._translated(), path.open("wb") as file:
            for piece in obstore.get(self._store, f"{id}/{name}").stream():
                file.write(piece)

    def remove(self, id: str) -> None:
        """Remove all files of a generation."""
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
            log.error("media: %s", _first_line(error))  # with addresses that are not a caller's business
            unavailable = MediaUnavailable("the place where media are kept does not answer; try again later")
            unavailable.retry_after_s = RETRY_AFTER_S
            raise unavailable from error


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
