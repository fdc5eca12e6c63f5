"""A cluster on loopback: two APIs, two Tritons, a store and a storage of media, which can be killed."""

import ctypes
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import psutil
from sqlalchemy import func, select

from foley_client import FoleyClient
from foley_server.jobs.media_store import MARKER
from foley_server.jobs.schema import jobs
from foley_server.jobs.store import Store
from foley_server.launcher.triton import claim_port
from harness.api_server import STOP_TIMEOUT_S, ApiServer, api_server
from harness.postgres import Postgres, postgres
from harness.s3 import s3

StoreKind = Literal["postgres", "sqlite"]

APIS, TRITONS = 2, 2
RUNNING = 3  # jobs that an API runs concurrently
SHARED_MEMORY = Path("/dev/shm")
SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER, from prctl.h


@dataclass
class Api:
    """An API process; all starts have the same port and data folder.

    Attributes:
        folder: Folder of its log and its data.
        environment: Additional environment variables.
        settings: Options of `foley-server api`.
        port: Its port.
    """

    folder: Path
    environment: dict[str, str]
    settings: dict[str, object]
    port: int = field(default_factory=lambda: claim_port("127.0.0.1", 0))

    def start(self) -> None:
        """Start it, and wait until it is ready."""
        self.folder.mkdir(exist_ok=True)
        self._stack = ExitStack()
        self.server: ApiServer = self._stack.enter_context(
            api_server(self.folder, self.environment, port=self.port, **self.settings)
        )

    def kill(self) -> None:
        """Kill it with SIGKILL."""
        self.server.kill()
        self._stack.close()

    def hang(self, seconds: float) -> None:
        """Suspend it with SIGSTOP, as if it hung, and let it continue after some time."""
        self.server.process.send_signal(signal.SIGSTOP)
        try:
            time.sleep(seconds)
        finally:
            self.server.process.send_signal(signal.SIGCONT)

    def stop(self) -> int | None:
        """Stop it in order, and return its exit code."""
        self._stack.close()
        return self.server.process.returncode

    def client(self) -> FoleyClient:
        """Return a client without retries."""
        return FoleyClient(f"grpc://127.0.0.1:{self.port}", max_retries=0)


@dataclass
class Triton:
    """A `foley-server run`, which ends when its Triton or a model's process ends; all starts have the same port.

    Attributes:
        bundle: Folder of the bundle.
        log: File with its output.
        environment: Additional environment variables.
        port: Its port.
        names: Name of the shared memory of each start.
    """

    bundle: Path
    log: Path
    environment: dict[str, str]
    port: int = field(default_factory=lambda: claim_port("127.0.0.1", 0))
    names: set[str] = field(default_factory=set)

    def start(self) -> None:
        """Start it, and wait until it is ready.

        Raises:
            RuntimeError: It did not become ready.
        """
        command: list[str | Path] = [Path(sys.executable).with_name("foley-server"), "run", f"--bundle={self.bundle}"]
        command += [f"--grpc-port={self.port}", "--metrics-port=0", "--until-stdin-closes"]
        with self.log.open("a") as errors:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, **self.environment},
            )
        assert self.process.stdout is not None
        if not self.process.stdout.readline().startswith("ready "):
            raise RuntimeError(f"foley-server run did not start: {self.log.read_text()[-2000:]}")
        self.names.update(word.partition("=")[2] for word in self._triton().cmdline() if word.startswith("--id="))

    def kill(self, rng: random.Random, model: bool) -> None:
        """Kill Triton, or the process of one of its models, with SIGKILL; `foley-server run` then ends."""
        triton = self._triton()
        (rng.choice(triton.children()) if model else triton).kill()
        self._wait()

    def stop(self) -> int:
        """Stop it in order, and return its exit code."""
        self.process.terminate()
        self._wait()
        return self.process.returncode

    def shared_memory(self) -> list[Path]:
        """Return the shared-memory regions of all starts."""
        return [region for name in self.names for region in SHARED_MEMORY.glob(f"{name}-*")]

    def _triton(self) -> psutil.Process:
        (triton,) = (one for one in psutil.Process(self.process.pid).children() if one.name() == "tritonserver")
        return triton

    def _wait(self) -> None:
        self.process.wait(STOP_TIMEOUT_S)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe:
                pipe.close()


@dataclass
class Cluster:
    """The processes of a cluster.

    Attributes:
        apis: The APIs.
        tritons: The Tritons.
        store_url: URL of the store.
        postgres: The store's Postgres; None for SQLite.
        media: Folder of the media, or of the bucket.
        scratch: Folder for the temporary files of all processes.
    """

    apis: list[Api]
    tritons: list[Triton]
    store_url: str
    postgres: Postgres | None
    media: Path
    scratch: Path

    def rows(self) -> int:
        """Return the number of jobs in the store, in any state."""
        store = Store(self.store_url)
        try:
            with store.engine.connect() as connection:
                return connection.execute(select(func.count()).select_from(jobs)).scalar_one()
        finally:
            store.close()

    def media_files(self) -> list[Path]:
        """Return the files of jobs in the storage of media."""
        return [path for path in self.media.rglob("*") if path.is_file() and path.name != MARKER]


@contextmanager
def cluster(bundle: Path, folder: Path, kind: StoreKind) -> Iterator[Cluster]:
    """Run a cluster while the context is active.

    Args:
        bundle: Folder of a small bundle.
        folder: An empty folder.
        kind: "postgres": with media in an S3 bucket; "sqlite": one shared file, with media in a shared folder.
    """
    scratch, buckets = folder / "tmp", folder / "buckets"
    for path in (scratch, buckets / "media"):
        path.mkdir(parents=True)
    environment = {"TMPDIR": str(scratch)}
    with ExitStack() as stack:
        server = stack.enter_context(postgres()) if kind == "postgres" else None
        url = server.database() if server else f"sqlite:///{folder / 'jobs.sqlite'}"
        storage = stack.enter_context(s3(buckets)) if server else {}
        tritons = [Triton(bundle, folder / f"triton-{i}.log", environment) for i in range(TRITONS)]
        settings: dict[str, object] = {
            "store": url,
            "media": "s3://media/jobs" if server else str(buckets / "media"),
            "triton": ",".join(f"127.0.0.1:{one.port}" for one in tritons),
            "running": RUNNING,
            "grace": 5,
        }
        apis = [Api(folder / f"api-{i}", environment | storage, settings) for i in range(APIS)]
        with ThreadPoolExecutor() as threads:
            for part in tritons:
                stack.callback(part.stop)
            list(threads.map(Triton.start, tritons))
            for api in apis:  # one after another: the first creates the tables
                api.start()
                stack.callback(api.stop)
        yield Cluster(apis, tritons, url, server, buckets / "media", scratch)


@contextmanager
def leftovers(report: Callable[[str], None]) -> Iterator[None]:
    """Report the processes that are left of those that were started in the context, also by processes that have ended.

    Args:
        report: Called at the end with one sentence for each.
    """
    libc = ctypes.CDLL(None)
    before = set(psutil.Process().children(recursive=True))
    libc.prctl(SUBREAPER, 1)  # this process adopts the children of its descendants that end
    try:
        yield
    finally:
        libc.prctl(SUBREAPER, 0)
        until = time.monotonic() + 10
        while (left := _running(before)) and time.monotonic() < until:
            time.sleep(0.1)
        for process in left:
            with suppress(psutil.Error):
                report(f"a process is left: {' '.join(process.cmdline())[:200]}")


def _running(before: set[psutil.Process]) -> list[psutil.Process]:
    """Return the descendants that are not in `before`; reap those that have ended."""
    found = []
    for process in set(psutil.Process().children(recursive=True)) - before:
        with suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
                continue
        with suppress(ChildProcessError):
            os.waitpid(process.pid, os.WNOHANG)
    return found
