"""Engine for Ray clusters: one actor for each node, which starts a Triton there, or for each given server.

Ray starts the actors, restarts those that die, and lists the nodes that are alive. This module is imported only for
`--ray`.
"""

import logging
import os
import re
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from foley.container import DEFAULT_LIMITS, Limits
from foley.errors import FoleyError, ServerUnavailable
from foley.scratch import scratch_folder
from foley_client.render.server import Server
from foley_client.render.storage import Output
from foley_client.render.task import Done, Failed, Task

log = logging.getLogger(__name__)

STOP_TIMEOUT_S = 30.0
CONNECT_TIMEOUT_S = 10.0
NO_WORKER_WARNING_S = 15.0  # time without a ready worker after which a warning is logged


class Worker:
    """Ray actor that holds a `Server`."""

    def __init__(self, url: str | None, bundle: Path | None, cache: Path | None, output: str, limits: Limits) -> None:
        self._open = ExitStack()
        scratch = self._open.enter_context(scratch_folder("foley-render-"))
        self._server = Server(url, bundle, cache, Output(output, scratch), scratch, limits)

    def versions(self) -> dict[str, str]:
        """See `Server`."""
        return self._server.versions()

    def render(self, task: Task) -> Done | Failed:
        """See `Server`."""
        return self._server.render(task)

    def stop(self) -> None:
        """See `Server`."""
        self._server.stop()

    def close(self) -> None:
        """Close the connection, stop a server started here, and remove the scratch folder."""
        self._server.close()
        self._open.close()


@dataclass
class _Handle:
    actor: Any
    versions: Any  # ObjectRef that resolves to the versions once the server runs
    state: Literal["starting", "failing", "ready", "refused"] = "starting"


class Cluster:
    """`foley_client.render.engine.Engine` on a Ray cluster; created by `cluster`."""

    def __init__(
        self,
        servers: Sequence[str],
        bundle: Path | None,
        cache: Path | None,
        output: str,
        capacity: int,
        limits: Limits,
    ) -> None:
        self._servers, self._capacity = servers, capacity
        self._arguments = bundle, cache, output, limits
        self._handles: dict[str, _Handle] = {}
        self._versions: dict[str, str] | None = None
        self._reason = ""  # error of the last worker that failed to start
        self._warn_at_s = time.monotonic() + NO_WORKER_WARNING_S
        for url in servers:
            self._handles[url] = self._start_worker(url, {"num_cpus": 1, "scheduling_strategy": "SPREAD"})

    def workers(self) -> Mapping[str, int]:
        """See `Engine`. Without given servers, the workers are the nodes with CPUs whose servers run.

        Raises:
            ServerUnavailable: No worker is ready, and none is starting.
        """
        if not self._servers:
            self._update_nodes()
        for name, handle in self._handles.items():
            if handle.state in ("starting", "failing"):
                self._update_state(name, handle)
        states = [handle.state for handle in self._handles.values()]
        if states and "starting" not in states and "ready" not in states:
            raise ServerUnavailable(
                f"no worker of the cluster can render ({self._reason}); fix the cause and run the command again"
            )
        ready = {name: self._capacity for name, handle in self._handles.items() if handle.state == "ready"}
        self._warn(waiting=not ready, starting=states.count("starting"))
        return ready

    def submit(self, worker: str, task: Task) -> "Future[Done | Failed]":
        """See `Engine`."""
        outcome: Future[Done | Failed] = Future()

        def ended(answer: "Future[Done | Failed]") -> None:
            error = answer.exception()
            if error is None:
                outcome.set_result(answer.result())
            else:  # the actor or its node died
                reason = f"the worker {worker} was lost ({_last_line(error)})"
                outcome.set_result(Failed(type(error).__name__, reason, worker_lost=True))

        self._handles[worker].actor.render.remote(task).future().add_done_callback(ended)
        return outcome

    def stop(self) -> None:
        """See `Engine`."""
        for handle in self._handles.values():
            handle.actor.stop.remote()

    def close(self) -> None:
        """Stop the servers that the actors started, and kill the actors."""
        closing = [handle.actor.close.remote() for handle in self._handles.values()]
        ray.wait(closing, num_returns=len(closing), timeout=STOP_TIMEOUT_S)
        for handle in self._handles.values():
            ray.kill(handle.actor)

    def _warn(self, waiting: bool, starting: int) -> None:
        now = time.monotonic()
        if not waiting:
            self._warn_at_s = now + NO_WORKER_WARNING_S
        elif now > self._warn_at_s:
            self._warn_at_s = now + 4 * NO_WORKER_WARNING_S
            state = f"{starting} starting or waiting for CPUs" if starting else "no node has CPUs"
            log.warning("waiting for a worker (%s); see `ray status`", state)

    def _update_nodes(self) -> None:
        nodes = {
            f"{node['NodeManagerHostname']} {node['NodeID'][:8]}": node
            for node in ray.nodes()
            if node["Alive"] and node["Resources"].get("CPU")
        }
        for name in self._handles.keys() - nodes.keys():
            del self._handles[name]
        for name in nodes.keys() - self._handles.keys():
            resources = nodes[name]["Resources"]
            self._handles[name] = self._start_worker(
                None,
                {
                    "num_cpus": resources["CPU"],  # reserves the whole node for the server
                    "num_gpus": resources.get("GPU", 0),
                    "scheduling_strategy": NodeAffinitySchedulingStrategy(nodes[name]["NodeID"], soft=False),
                },
            )

    def _start_worker(self, url: str | None, options: dict[str, Any]) -> _Handle:
        # threads for the rows, and further ones for `stop` and other control calls
        actor = ray.remote(Worker).options(max_restarts=-1, max_concurrency=self._capacity + 2, **options)
        handle: Any = actor.remote(url, *self._arguments)
        return _Handle(handle, handle.versions.remote())

    def _update_state(self, name: str, worker: _Handle) -> None:
        """Mark a worker ready once its server runs, if it has the same versions as the others."""
        if not ray.wait([worker.versions], timeout=0)[0]:
            return
        try:
            versions = ray.get(worker.versions)
        except (RayError, FoleyError) as error:
            worker.state, self._reason = "failing", f"{name}: {_last_line(error)}"
            worker.versions = worker.actor.versions.remote()
            return
        self._versions = self._versions or versions
        worker.state = "ready" if versions == self._versions else "refused"
        if worker.state == "refused":
            log.warning("the worker %s is not used: its bundle or versions differ from those of the others", name)


def _check_reachable(address: str) -> None:
    """Check that a server listens at HOST:PORT, because Ray itself retries for minutes.

    Raises:
        OSError: No server listens there.
    """
    if match := re.fullmatch(r"(?:ray://)?([^:/]+|\[.+\]):(\d{1,5})", address):
        socket.create_connection((match[1].strip("[]"), int(match[2])), CONNECT_TIMEOUT_S).close()


def _last_line(error: BaseException) -> str:
    return str(error).strip().rpartition("\n")[2]


@contextmanager
def cluster(
    address: str,
    servers: Sequence[str],
    bundle: Path | None,
    cache: Path | None,
    output: str,
    capacity: int,
    limits: Limits = DEFAULT_LIMITS,
) -> Iterator[Cluster]:
    """Join the cluster at `address`, or start one on this machine for "local", and leave it on exit.

    Args:
        address: Address of the cluster, "auto" or "local", as for `ray.init`.
        servers: Addresses of Triton servers; if empty, every node starts one.
        bundle: Bundle of started servers; None for the default.
        cache: Folder of cached envelopes and embeddings on each node; None for no cache.
        output: Output folder or URL, accessible from every node.
        capacity: Number of concurrent rows on each server.
        limits: Limits on the inputs.

    Yields:
        The engine.

    Raises:
        ServerUnavailable: The cluster cannot be joined.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray sends usage reports by default
    with redirect_stdout(sys.stderr):  # Ray prints to stdout, which is reserved for results
        try:
            _check_reachable(address)
            ray.init(address, log_to_driver=False, configure_logging=False)
        except (RayError, OSError, ValueError, RuntimeError) as error:
            raise ServerUnavailable(
                f"cannot join a Ray cluster at {address} ({_last_line(error)}); check the address with `ray status`"
            ) from error
        try:
            joined = Cluster(servers, bundle, cache, output, capacity, limits)
            try:
                yield joined
            finally:
                joined.close()
        finally:
            ray.shutdown()
