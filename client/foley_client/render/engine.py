"""Where rows are rendered: on one machine, by threads. `ray_engine` is the same on many."""

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from foley.errors import SettingError
from foley_client.render.server import Server
from foley_client.render.task import Done, Failed, Task


class Engine(Protocol):
    """Runs tasks where it is told to; what to run where, and what to do about failures, is `farm`'s."""

    def places(self) -> Mapping[str, int]:
        """The places that take tasks now, and how many at once."""

    def submit(self, place: str, task: Task) -> "Future[Done | Failed]":
        """Run a task at a place. Whatever happens there, there is an outcome."""

    def stop(self) -> None:
        """Stop what runs, within one step of its denoising."""


class Threads:
    """Servers that this process drives.

    Args:
        servers: by the names that the user knows them by.
        workers: rows at once on each.

    Raises:
        ServerUnavailable: one cannot be connected, or started.
        SettingError: they serve different bundles, whose results do not belong together.
    """

    def __init__(self, servers: Mapping[str, Server], workers: int) -> None:
        self._servers, self._workers = servers, workers
        served = [server.versions() for server in servers.values()]
        if any(versions != served[0] for versions in served):
            raise SettingError(
                "the servers serve different bundles, or have different versions; render with equal ones"
            )
        self._pool = ThreadPoolExecutor(len(servers) * workers, "render")

    def places(self) -> Mapping[str, int]:
        """See `Engine`."""
        return dict.fromkeys(self._servers, self._workers)

    def submit(self, place: str, task: Task) -> "Future[Done | Failed]":
        """See `Engine`."""
        return self._pool.submit(self._servers[place].render, task)

    def stop(self) -> None:
        """See `Engine`."""
        for server in self._servers.values():
            server.stop()

    def close(self) -> None:
        """Wait for what runs, and end the servers that are our own."""
        self._pool.shutdown(cancel_futures=True)
        for server in self._servers.values():
            server.close()
