"""Starts and stops a real `foley-server api` for tests and harnesses."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from foley_client import FoleyClient

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 120.0


@dataclass
class ApiServer:
    """A running API server.

    Attributes:
        process: The `foley-server api` process.
        grpc: `HOST:PORT` of the API.
        metrics: `HOST:PORT` of the metrics.
        log: File with its standard error.
        studio: Address of the studio; empty if it is not served.
    """

    process: subprocess.Popen[str]
    grpc: str
    metrics: str
    log: Path
    studio: str = ""

    def client(self, token: str | None = None, max_retries: int = 0) -> FoleyClient:
        """Return a client of the server, without TLS."""
        return FoleyClient(f"grpc://{self.grpc}", token=token, max_retries=max_retries)

    def terminate(self) -> None:
        """Send SIGTERM to the server."""
        self.process.terminate()

    def kill(self) -> None:
        """Send SIGKILL to the server process only, and wait until it and all its descendants have ended."""
        family = self.family()
        self.process.kill()
        self.process.wait()
        psutil.wait_procs(family, STOP_TIMEOUT_S)

    def family(self) -> list[psutil.Process]:
        """Return the descendant processes: Triton, its models, decoders."""
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def triton(self) -> psutil.Process:
        """Return the process of the embedded Triton."""
        return next(one for one in self.family() if one.name() == "tritonserver")


@contextmanager
def api_server(folder: Path, environment: Mapping[str, str] | None = None, **settings: object) -> Iterator[ApiServer]:
    """Start `foley-server api` on free ports, and stop it on exit.

    Args:
        folder: Folder for the log, `api.log`, and by default for the data, `data`.
        environment: Additional environment variables.
        **settings: Options of `foley-server api`, with underscores; True for a flag without a value.

    Yields:
        The server, once it is ready.

    Raises:
        RuntimeError: The server did not become ready; the message ends with its log.
    """
    chosen = {"port": 0, "metrics_port": 0, "data": folder / "data", "max_steps": 1000, **settings}
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in chosen.items() if value is not True]
    flags += [f"--{key.replace('_', '-')}" for key, value in chosen.items() if value is True]
    log = folder / "api.log"
    with log.open("a") as errors:
        process = subprocess.Popen(
            [Path(sys.executable).with_name("foley-server"), "api", *flags],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, **(environment or {})},
        )
    assert process.stdout is not None
    try:
        ready = process.stdout.readline()
        if not ready.startswith("ready "):
            raise RuntimeError(f"foley-server api did not start: {log.read_text()[-2000:]}")
        endpoints = dict(part.split("=", 1) for part in ready.split()[1:])
        yield ApiServer(process, endpoints["grpc"], endpoints["metrics"], log, endpoints.get("studio", ""))
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        process.stdout.close()


def await_serving(server: ApiServer, timeout_s: float = START_TIMEOUT_S) -> None:
    """Wait until the server accepts work.

    Raises:
        TimeoutError: It does not accept work within `timeout_s` seconds.
    """
    until = time.monotonic() + timeout_s
    with server.client() as client:
        while not client.serving():
            if time.monotonic() > until:
                raise TimeoutError(f"{server.grpc} takes no work; its log is {server.log}")
            time.sleep(0.1)
