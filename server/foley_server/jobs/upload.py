"""Receives uploaded files from chunk messages into a folder per request; checks their order and size."""

import asyncio
import errno
import hashlib
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from foley.errors import InvalidInput, MediaTooLarge, Overloaded, TimedOut
from foley_pipeline.api import foley_pb2 as pb

MAX_CHUNK = 1 << 20
FIRST_MESSAGE_TIMEOUT_S = 30.0
IDLE_TIMEOUT_S = 30.0  # between two messages of an upload
GRACE_S, MIN_BYTES_PER_S = 30.0, 8192  # an upload that is slower on average, after the grace period, ends
SPACE_CHECK_BYTES = 16 << 20
DISK_RETRY_S = 60.0
VIDEO, RECORDING = "video", "recording"  # names of the files


@dataclass(frozen=True)
class Uploads:
    """Creates folders for uploaded files.

    Attributes:
        root: Parent folder.
        max_bytes: Maximum size of a file.
        reserve_bytes: Free disk space below which nothing is received.
    """

    root: Path
    max_bytes: int
    reserve_bytes: int = 0

    def check_space(self) -> None:
        """Check the free disk space.

        Raises:
            Overloaded: It is below `reserve_bytes`.
        """
        if shutil.disk_usage(self.root).free < self.reserve_bytes:
            raise _disk_full()

    @contextmanager
    def folder(self) -> Iterator["UploadFolder"]:
        """Create a folder that is removed on exit. File names in it never come from the request."""
        root = Path(tempfile.mkdtemp(dir=self.root))
        try:
            yield UploadFolder(root, self)
        finally:
            shutil.rmtree(root, ignore_errors=True)


@dataclass(frozen=True)
class UploadFolder:
    """The files of one request.

    Attributes:
        root: Path of the folder.
        uploads: Limits.
    """

    root: Path
    uploads: Uploads

    @property
    def video(self) -> Path:
        """Path of the uploaded video."""
        return self.root / VIDEO

    @property
    def recording(self) -> Path:
        """Path of the uploaded audio prompt."""
        return self.root / RECORDING

    async def receive(self, messages: AsyncIterator[Any], expected: Mapping[pb.FileKind, Path]) -> str:
        """Write the chunks in `messages` to files.

        Args:
            messages: Messages whose `part` is a chunk.
            expected: Path of each expected file, by kind, in upload order.

        Returns:
            SHA-256 of the kinds and contents of the files, hexadecimal.

        Raises:
            InvalidInput: A message is not a chunk, a chunk is out of order or of a wrong size, or a file is missing.
            MediaTooLarge: A file is larger than the limit.
            Overloaded: The disk is nearly full.
            TimedOut: No message arrived for `IDLE_TIMEOUT_S`.
        """
        try:
            return await self._receive(messages, expected)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise _disk_full() from error
            raise

    async def _receive(self, messages: AsyncIterator[Any], expected: Mapping[pb.FileKind, Path]) -> str:
        digest, started_at, total = hashlib.sha256(), time.monotonic(), 0
        order, position, size, received = list(expected), -1, 0, 0
        file: BinaryIO | None = None
        try:
            async for message in _without_pauses(messages):
                if message.WhichOneof("part") != "chunk":
                    raise _invalid("part", "only the first message may contain the options; send chunks after it")
                kind, data = message.chunk.kind, message.chunk.data
                if kind not in order or order.index(kind) < position:
                    name = pb.FileKind.Name(kind) if kind in pb.FileKind.values() else str(kind)
                    raise _invalid(
                        "chunk.kind", f"unexpected {name}; send the files that the options announce, in order"
                    )
                if not data or len(data) > MAX_CHUNK:
                    raise _invalid("chunk.data", f"the chunk has {len(data)} bytes; send 1 to {MAX_CHUNK}")
                if order.index(kind) > position:
                    if order.index(kind) != position + 1:
                        break  # a file was skipped
                    if file:
                        file.close()
                    position, size = position + 1, 0
                    file = expected[kind].open("xb")
                    digest.update(bytes([kind]))
                size += len(data)
                received += len(data)
                total += len(data)
                elapsed_s = time.monotonic() - started_at
                if elapsed_s > GRACE_S and total < MIN_BYTES_PER_S * elapsed_s:
                    raise TimedOut(f"the upload is slower than {MIN_BYTES_PER_S >> 10} KiB/s; use a faster connection")
                if received >= SPACE_CHECK_BYTES:
                    received = 0
                    self.uploads.check_space()
                if size > self.uploads.max_bytes:
                    error = MediaTooLarge(
                        f"the {expected[kind].name} is larger than {self.uploads.max_bytes >> 20} MiB, the limit; "
                        "compress or shorten it"
                    )
                    error.field = "chunk.data"
                    raise error
                assert file is not None
                file.write(data)
                digest.update(data)
        finally:
            if file:
                file.close()
        if position + 1 < len(order):
            missing = expected[order[position + 1]].name
            raise _invalid("chunk.kind", f"the {missing} is missing; send every file that the options announce")
        return digest.hexdigest()


async def read_first(messages: AsyncIterator[Any], part: str) -> Any:
    """Return the field `part` of the first message.

    Raises:
        InvalidInput: There is no message, or it holds another part.
        TimedOut: It has not arrived within `FIRST_MESSAGE_TIMEOUT_S`.
    """
    try:
        message = await asyncio.wait_for(anext(aiter(messages), None), FIRST_MESSAGE_TIMEOUT_S)
    except asyncio.TimeoutError as error:
        raise TimedOut(f"no message arrived within {FIRST_MESSAGE_TIMEOUT_S:g} s; send `{part}` at once") from error
    if message is not None and message.WhichOneof("part") == part:
        return getattr(message, part)
    raise _invalid("part", f"the first message must contain `{part}`; send it before any chunk")


async def _without_pauses(messages: AsyncIterator[Any]) -> AsyncIterator[Any]:
    """Yield the messages.

    Raises:
        TimedOut: The next one has not arrived within `IDLE_TIMEOUT_S`.
    """
    iterator, end = aiter(messages), object()
    try:
        while (message := await asyncio.wait_for(anext(iterator, end), IDLE_TIMEOUT_S)) is not end:
            yield message
    except asyncio.TimeoutError as error:
        raise TimedOut(f"nothing was uploaded for {IDLE_TIMEOUT_S:g} s; send the files without pauses") from error


def _disk_full() -> Overloaded:
    error = Overloaded("the server's disk is nearly full; try again later")
    error.retry_after_s = DISK_RETRY_S
    return error


def _invalid(field: str, message: str) -> InvalidInput:
    error = InvalidInput(message)
    error.field = field
    return error
