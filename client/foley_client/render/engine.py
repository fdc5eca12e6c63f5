"""Engines, which run the tasks of a render: threads on this machine. `ray_engine` is the engine for clusters."""

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from foley.errors import SettingError
from foley_client.render.server import Server
from foley_client.render.task import Done, Failed, Task


class Engine(Protocol):
    """Runs tasks on named workers, each of which is a server. `farm` does the scheduling and the retries."""

    def workers(self) -> Mapping[str, int]:
        """Return the workers that accept tasks now, with the capacity, the number of concurrent tasks, of each."""

    def submit(self, worker: str, task: Task) -> "Future[Done | Failed]":
        """Start a task on a worker. Every error of the task, including a lost worker, is returned as `Failed`."""

    def stop(self) -> None:
        """Stop the running tasks within one denoising step."""


class Threads:
    """Engine that renders in threads of this process.

    Args:
        servers: Servers by display name.
        capacity: Number of concurrent rows on each server.

    Raises:
        ServerUnavailable: A server does not respond or cannot be started.
        SettingError: The servers have different bundles or versions, whose results must not be mixed.
    """

    def __init__(self, servers: Mapping[str, Server], capacity: int) -> None:
        self._servers, self._capacity = servers, capacity
        served = [server.versions() for server in servers.values()]
        if any(versions != served[0] for versions in served):
            raise SettingError(
                "the servers have different bundles or versions; use servers with the same bundle and versions"
            )
        self._pool = ThreadPoolExecutor(len(servers) * capacity, "render")

    def workers(self) -> Mapping[str, int]:
        """See `Engine`."""
        return dict.fromkeys(self._servers, self._capacity)

    def submit(self, worker: str, task: Task) -> "Future[Done | Failed]":
        """See `Engine`."""
        return self._pool.submit(self._servers[worker].render, task)

    def stop(self) -> None:
        """See `Engine`."""
        for server in self._servers.values():
            server.stop()

    def close(self) -> None:
        """Wait for the running tasks, then close the connections and stop the servers started here."""
        self._pool.shutdown(cancel_futures=True)
        for server in self._servers.values():
            server.close()
