"""Pipes as files of the command line: `-` for standard input and output, and FIFOs, such as `<(command)` of a shell.

Containers need random access, so a pipe is copied to a temporary file before it is read, and after it is written.
"""

import os
import select
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType

from foley.envelope_file import EXTENSIONS as TEXT_EXTENSIONS
from foley.errors import MediaError, MediaTooLarge, OutputError, SettingError
from foley.scratch import explained, scratch_folder

STANDARD = Path("-")
MAX_BYTES = 64 << 30  # of an endless pipe
IDLE_S = 600.0  # without data, after which a pipe is given up
_CHUNK_BYTES = 1 << 20


def file_argument(text: str) -> Path:
    """Parse the name of a file on the command line.

    Raises:
        SettingError: It is a URL.
    """
    if "://" in text:
        raise SettingError(f"{text} is a URL; give a file, or use `foley render`, which reads and writes URLs")
    return Path(text)


class Pipes:
    """Temporary files in place of pipes; a context manager.

    Args:
        limit: Largest number of bytes that are read from a pipe.
    """

    def __init__(self, limit: int = MAX_BYTES) -> None:
        self._limit = limit
        self._open = ExitStack()
        self._folder: Path | None = None
        self._inputs: set[Path] = set()
        self._output: Path | None = None

    def __enter__(self) -> "Pipes":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._open.close()

    def source(self, path: Path) -> Path:
        """Return `path`, or a temporary copy of what is in it if it is a pipe or `-`.

        Raises:
            SettingError: `path` is `-`, and standard input is a terminal, closed, or read already.
            MediaError: The pipe cannot be read, is idle for `IDLE_S`, or has more than `limit` bytes.
            OutputError: The copy cannot be written.
        """
        if path != STANDARD and not _is_pipe(path):
            return path
        name = "standard input" if path == STANDARD else str(path)
        if path in self._inputs:
            raise SettingError(f"{name} is given for two inputs; use a file for one of them")
        self._inputs.add(path)
        with explained():
            folder = self._scratch() / str(len(self._inputs))  # FIFOs in different folders may have one name
            folder.mkdir()
        copy = folder / ("stdin" if path == STANDARD else path.name)
        if path != STANDARD:
            with _opened(path) as descriptor:
                self._copy(descriptor, copy, name)
        elif sys.stdin is None:
            raise SettingError("standard input is closed; give the name of a file")
        elif sys.stdin.isatty():
            raise SettingError("standard input is a terminal; pipe a file into it, or give the name of a file")
        else:
            self._copy(sys.stdin.fileno(), copy, name)
        return copy

    def destinations(self, paths: Sequence[Path], format: str | None, extensions: Sequence[str]) -> list[Path]:
        """Return `paths` with a temporary file in place of `-`.

        Args:
            paths: Output files.
            format: The extension for `-`, with or without the dot.
            extensions: Allowed extensions.

        Raises:
            SettingError: There is no format for `-`, an unknown one, or one without `-`; or a terminal would get binary
                data.
        """
        if STANDARD not in paths:
            if format:
                raise SettingError("--format applies to standard output; add `-o -`, or omit it")
            return list(paths)
        if not format:
            raise SettingError("standard output needs a format; add one, such as `--format wav`")
        extension = f".{format.lower().removeprefix('.')}"
        if extension not in extensions:
            known = ", ".join(one.removeprefix(".") for one in extensions)
            raise SettingError(f"--format is {format}: use one of {known}")
        if sys.stdout is None:
            raise SettingError("standard output is closed; give the name of a file")
        if sys.stdout.isatty() and extension not in TEXT_EXTENSIONS:
            raise SettingError("standard output is a terminal; send it to a file or a program")
        self._output = self._scratch() / f"stdout{extension}"
        return [self._output if path == STANDARD else path for path in paths]

    @property
    def takes_output(self) -> bool:
        """Whether standard output is an output file, so that it must contain nothing else."""
        return self._output is not None

    def finish(self) -> None:
        """Copy the output for `-` to standard output.

        Raises:
            OutputError: It cannot be written, or its reader has closed it.
        """
        if self._output is None:
            return
        try:
            with self._output.open("rb") as made, open(sys.stdout.fileno(), "wb", closefd=False) as pipe:
                shutil.copyfileobj(made, pipe, _CHUNK_BYTES)
        except OSError as error:
            raise OutputError(f"cannot write standard output ({error.strerror}); check what reads it") from error

    def _scratch(self) -> Path:
        if self._folder is None:
            self._folder = self._open.enter_context(scratch_folder("foley-pipe-"))
        return self._folder

    def _copy(self, descriptor: int, copy: Path, name: str) -> None:
        left = self._limit
        with explained(), copy.open("wb") as file:
            while chunk := _read(descriptor, name):
                left -= len(chunk)
                if left < 0:
                    raise MediaTooLarge(f"{name} has more than {self._limit} bytes, the limit; compress or cut it")
                file.write(chunk)


def _read(descriptor: int, name: str) -> bytes:
    try:
        if not select.select([descriptor], [], [], IDLE_S)[0]:
            raise MediaError(f"nothing was written to {name} for {IDLE_S:g} s; check what writes it")
        return os.read(descriptor, _CHUNK_BYTES)
    except OSError as error:
        raise MediaError(f"cannot read {name} ({error.strerror}); give the name of a file") from error


def _is_pipe(path: Path) -> bool:
    try:
        return path.is_fifo()
    except OSError:  # the reader of the file reports it
        return False


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """Open a FIFO without waiting for a writer; `_read` waits for what it writes."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        raise MediaError(f"cannot read {path} ({error.strerror}); check the permissions") from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)
