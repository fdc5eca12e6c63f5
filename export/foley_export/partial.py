"""The part of a file that has been downloaded so far, kept on the disk between tries and runs.

It lies beside the destination as `NAME.partial`. `NAME.partial.source` says which version of the file it is the start
of, so that a file that changed at its home is fetched from the start and never patched together.
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
    """The start of a file that becomes `destination` when it is whole. Methods that write raise OutputError."""

    def __init__(self, destination: Path) -> None:
        self.destination = destination
        self.path = destination.with_name(f"{destination.name}.partial")
        self._source = destination.with_name(f"{destination.name}.partial.source")

    @property
    def size(self) -> int:
        """Bytes that are there."""
        return self.path.stat().st_size if self.path.exists() else 0

    def resumes(self, url: str) -> bool:
        """Whether there is a start of the file at `url` that a server can be asked to continue."""
        return self.size > 0 and bool(self._version_at(url))

    def request_headers(self, url: str) -> dict[str, str]:
        """Headers that ask for the rest, or for all if the file has changed since (RFC 9110, section 13.1.5)."""
        if not self.resumes(url):
            return {}
        return {"Range": f"bytes={self.size}-", "If-Range": self._version_at(url)}

    def continues(self, url: str, headers: Mapping[str, str]) -> bool:
        """Whether the part that an answer's `headers` describe follows what is there."""
        first = re.match(r"bytes (\d+)-", headers.get("Content-Range", ""))
        # a server may ignore If-Range and send a part of a file that has changed
        return first is not None and int(first[1]) == self.size and version(headers) in ("", self._version_at(url))

    def start(self, url: str, headers: Mapping[str, str]) -> None:
        """Forget what is there and begin the file that an answer's `headers` describe."""
        self.discard()
        with writing(self.destination):
            self._source.write_text(f"{url}\n{version(headers)}\n")

    def append(self, chunk: bytes) -> None:
        """Add `chunk` at the end."""
        # without a buffer: what was received is there for the next run, even after kill -9
        with writing(self.destination), self.path.open("ab", buffering=0) as file:
            rest = memoryview(chunk)
            while rest:
                rest = rest[file.write(rest) :]

    def discard(self) -> None:
        """Forget what is there."""
        with writing(self.destination):
            self.path.unlink(missing_ok=True)
            self._source.unlink(missing_ok=True)

    def finish(self) -> None:
        """Give the whole file its name."""
        with writing(self.destination):
            with self.path.open("rb") as file:
                os.fsync(file.fileno())
            self.path.replace(self.destination)
            self._source.unlink(missing_ok=True)

    def _version_at(self, url: str) -> str:
        """The version that this is a part of; empty if it is not known to be of `url`."""
        with suppress(OSError, ValueError):
            from_url, known = self._source.read_text().split("\n")[:2]
            return known if from_url == url else ""
        return ""


def version(headers: Mapping[str, str]) -> str:
    """What tells this version of a file from others: its strong ETag, else its date, else nothing."""
    etag = headers.get("ETag", "")
    return etag if etag.startswith('"') else headers.get("Last-Modified", "")


@contextmanager
def writing(destination: Path) -> Iterator[None]:
    """Turn errors of writing to the folder of `destination` into OutputError."""
    try:
        yield
    except OSError as error:
        todo = (
            "make room and run the same again to go on from here"
            if error.errno in _OUT_OF_SPACE
            else "check its folder's permissions, or choose another with --cache"
        )
        raise OutputError(f"{destination} cannot be written ({error.strerror}); {todo}") from error
