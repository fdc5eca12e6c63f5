"""Tries what a decoder that was taken over would try, to measure what the sandbox refuses."""

import ctypes
import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path

_OWN_VARIABLES = {"LC_CTYPE", "OPENBLAS_NUM_THREADS"}  # set by Python, and for the decoder
_TRACE_ME, _READ_MEMORY = 0, {"x86_64": 310, "aarch64": 270}


def gaps(file: Path, folder: Path, port: int, server: int) -> list[str]:
    """Try everything that the sandbox has to refuse, and return what succeeded.

    Args:
        file: The file that the sandbox may read.
        folder: A folder that it may not use, with a file `other` and an executable file `program`, which is not a
            program.
        port: A TCP port of the loopback interface that accepts connections.
        server: Number of the server's process.
    """
    return [name for name, attempt in attempts(file, folder, port, server).items() if _succeeds(attempt)]


def attempts(file: Path, folder: Path, port: int, server: int) -> dict[str, Callable[[], object]]:
    """Return what `gaps` tries: functions that raise an OSError if they are refused."""
    return {
        "open a TCP socket": lambda: socket.socket(socket.AF_INET).close(),
        "open a Unix socket": lambda: socket.socket(socket.AF_UNIX).close(),
        "connect to a port": lambda: socket.create_connection(("127.0.0.1", port), 5).close(),
        "read /etc/passwd": lambda: Path("/etc/passwd").read_bytes(),
        "read another file": lambda: (folder / "other").read_bytes(),
        "list a folder": lambda: list(folder.iterdir()),
        "create a file": lambda: (folder / "new").open("x").close(),
        "change the input": lambda: file.open("r+b").close(),
        "remove a file": lambda: (folder / "other").unlink(),
        "read the environment of the server": lambda: Path(f"/proc/{server}/environ").read_bytes(),
        "read the memory of the server": lambda: _read_memory(server),
        "send the server a signal": lambda: os.kill(server, 0),
        "start a process": _fork,
        "run a program": lambda: _run(folder / "program"),
        "use ptrace": _trace,
        "use descriptors of the server": _descriptors,
        "read variables of the server": _variables,
    }


def _succeeds(attempt: Callable[[], object]) -> bool:
    try:
        attempt()
    except OSError:
        return False
    return True


def _fork() -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)


def _run(program: Path) -> None:
    try:
        os.execv(program, [str(program)])
    except OSError as error:
        if error.errno != errno.ENOEXEC:  # read, and found to be no program: it was not refused
            raise


def _read_memory(process: int) -> None:
    libc, vector = (
        ctypes.CDLL(None, use_errno=True),
        (ctypes.c_size_t * 2)(0, 1),
    )  # one byte at address 0: there is none
    call, one, none = (ctypes.c_long(n) for n in (_READ_MEMORY[os.uname().machine], 1, 0))
    libc.syscall(call, ctypes.c_long(process), vector, one, vector, one, none)
    if ctypes.get_errno() != errno.EFAULT:  # the address was looked up: it was not refused
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _trace() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ptrace(_TRACE_ME, 0, None, None) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _descriptors() -> None:
    """Succeed if a descriptor is open besides the standard ones and the decoder's stream of messages, which is 3."""
    for descriptor in range(4, 64):
        if _succeeds(lambda descriptor=descriptor: os.fstat(descriptor)):  # type: ignore[misc]
            return
    raise FileNotFoundError


def _variables() -> None:
    if not os.environ.keys() - _OWN_VARIABLES:
        raise FileNotFoundError
