"""A Triton server of one's own, for the time of one call: `foley-server` as a child process."""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from foley.errors import ServerUnavailable
from foley_pipeline.triton import Triton

STOP_TIMEOUT_S = 60.0


@contextmanager
def embedded_triton(bundle: Path | None = None) -> Iterator[Triton]:
    """Start `foley-server` (for `bundle`, or its default one), connect, and stop it at the end.

    The server watches its standard input: it stops when this process ends, however it ends.

    Raises:
        ServerUnavailable: `foley-server` is not installed here, or did not start; says why.
    """
    command = [_foley_server(), "run", "--grpc-port=0", "--metrics-port=0", "--until-stdin-closes"]
    if bundle is not None:
        command.append(f"--bundle={bundle}")
    # A file, not a pipe: a server that writes much would wait for ever until the pipe is read.
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,  # Ctrl-C is for us: we cancel first and stop the server after that
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            ready = process.stdout.readline()  # every step of foley-server's start has a time limit, so this returns
            if not ready.startswith("ready "):
                process.wait(STOP_TIMEOUT_S)
                errors.seek(0)
                reason = errors.read().strip().removeprefix("error: ")
                raise ServerUnavailable(reason or "foley-server ended before it was ready")
            endpoints = dict(part.split("=", 1) for part in ready.split()[1:])
            with Triton(endpoints["grpc"]) as triton:
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
            "foley-server is not installed here; install it, or name a running server with --server"
        )
    return found
