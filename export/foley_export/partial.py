"""Partial downloads, kept on disk across attempts and runs.

The part is stored beside the destination as `NAME.partial`. `NAME.partial.source` records the URL and the version of
the file, so that a file that changed on the server is downloaded from the start, never combined from two versions.
"""

import errno
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from foley.errors import OutputError

_OUT_OF_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Partial:
    """A partial download of `destination`.

    Methods that write raise `OutputError` on I/O errors.
    """

    def __init__(self, destination: Path) -> None:
        self.destination = destination
        self.path = destination.with_name(f"{destination.name}.partial")
        self._source = destination.with_name(f"{destination.name}.partial.source")

    @property
    def size(self) -> int:
        """Bytes downloaded so far."""
        return self.path.stat().st_size if self.path.exists() else 0

    def resumes(self, url: str) -> bool:
        """Whether there is a part of the file at `url` that a server can continue."""
        return self.size > 0 and bool(self._version_at(url))

    def request_headers(self, url: str) -> dict[str, str]:
        """Return headers that request the rest, or all of a file that has changed (RFC 9110, section 13.1.5)."""
        if not self.resumes(url):
            return {}
        return {"Range": f"bytes={self.size}-", "If-Range": self._version_at(url)}

    def continues(self, url: str, headers: Mapping[str, str]) -> bool:
        """Whether the range in a response's `headers` continues the downloaded part."""
        first = re.match(r"bytes (\d+)-", headers.get("Content-Range", ""))
        # a server may ignore If-Range and send a part of a file that has changed
        return first is not None and int(first[1]) == self.size and version(headers) in ("", self._version_at(url))

    def start(self, url: str, headers: Mapping[str, str]) -> None:
        """Discard the part and start the file that a response's `headers` describe."""
        self.discard()
        with writing(self.destination):
            self._source.write_text(f"{url}\n{version(headers)}\n")

    def append(self, chunk: bytes) -> None:
        """Append `chunk`."""
        # unbuffered: received bytes are kept for the next run, even after kill -9
        with writing(self.destination), self.path.open("ab", buffering=0) as file:
            rest = memoryview(chunk)
            while rest:
                rest = rest[file.write(rest) :]

    def discard(self) -> None:
        """Delete the part."""
        with writing(self.destination):
            self.path.unlink(missing_ok=True)
            self._source.unlink(missing_ok=True)

    def finish(self) -> None:
        """Rename the complete file to `destination`."""
        with writing(self.destination):
            with self.path.open("rb") as file:
                os.fsync(file.fileno())
            self.path.replace(self.destination)
            self._source.unlink(missing_ok=True)

    def _version_at(self, url: str) -> str:
        """Return the version of the file that the part belongs to; empty if it is unknown or not from `url`."""
        with suppress(OSError, ValueError):
            from_url, known = self._source.read_text().split("\n")[:2]
            return known if from_url == url else ""
        return ""


def version(headers: Mapping[str, str]) -> str:
    """Return what identifies a version of a file: its strong ETag, else its Last-Modified date, else ""."""
    etag = headers.get("ETag", "")
    return etag if etag.startswith('"') else headers.get("Last-Modified", "")


@contextmanager
def writing(destination: Path) -> Iterator[None]:
    """Turn an OSError from writing to the folder of `destination` into an OutputError."""
    try:
        yield
    except OSError as error:
        remedy = (
            "free disk space and run the command again to resume"
            if error.errno in _OUT_OF_SPACE
            else "check the permissions of its folder, or choose another folder with --cache"
        )
        raise OutputError(f"{destination} cannot be written ({error.strerror}); {remedy}") from error
