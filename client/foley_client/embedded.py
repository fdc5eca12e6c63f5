"""Runs `foley-server` as a child process for the duration of a context."""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from foley.errors import ServerUnavailable
from foley.scratch import explained
from foley_pipeline.triton import TritonClient

STOP_TIMEOUT_S = 60.0


@contextmanager
def embedded_triton(bundle: Path | None = None) -> Iterator[TritonClient]:
    """Start `foley-server`, connect to it, and stop it on exit.

    The server watches its standard input and stops when this process ends, even if it is killed.

    Args:
        bundle: Bundle to serve; None for the default of `foley-server`.

    Yields:
        A connected client.

    Raises:
        OutputError: No temporary file can be written.
        ServerUnavailable: `foley-server` is not installed, or did not start; the message gives the reason.
    """
    command = [_foley_server(), "run", "--grpc-port=0", "--metrics-port=0", "--until-stdin-closes"]
    if bundle is not None:
        command.append(f"--bundle={bundle}")
    # A file, not a pipe: the server would block as soon as an unread pipe is full.
    with ExitStack() as files:
        with explained():
            errors = files.enter_context(tempfile.TemporaryFile("w+"))
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,  # Ctrl-C reaches only this process, which cancels its calls, then stops the server
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            ready = process.stdout.readline()  # returns: every step of foley-server's start-up has a timeout
            if not ready.startswith("ready "):
                process.wait(STOP_TIMEOUT_S)
                errors.seek(0)
                reason = errors.read().strip().removeprefix("error: ")
                raise ServerUnavailable(
                    reason or "foley-server ended before it was ready; run `foley-server run` to see its output"
                )
            endpoints = dict(part.split("=", 1) for part in ready.split()[1:])
            with TritonClient(endpoints["grpc"]) as triton:
                yield triton
        finally:
            process.stdin.close()
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()


def _foley_server() -> str:
    beside = Path(sys.executable).with_name("foley-server")
    found = str(beside) if beside.is_file() else shutil.which("foley-server")
    if found is None:
        raise ServerUnavailable(
            "foley-server is not installed; run `pip install ./server[triton]`, or give the address of a running server"
        )
    return found
