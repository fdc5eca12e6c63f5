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

from foley.errors import FoleyError, ServerUnavailable
from foley.scratch import scratch_folder
from foley_client.render.place import Output
from foley_client.render.server import Server
from foley_client.render.task import Done, Failed, Task

log = logging.getLogger(__name__)

STOP_TIMEOUT_S = 30.0
KNOCK_TIMEOUT_S = 10.0
PATIENCE_S = 15.0  # without a ready place before a warning is logged


class Worker:
    """Ray actor that holds the `Server` of a place."""

    def __init__(self, url: str | None, bundle: Path | None, cache: Path | None, output: str) -> None:
        self._open = ExitStack()
        scratch = self._open.enter_context(scratch_folder("foley-render-"))
        self._server = Server(url, bundle, cache, Output(output, scratch), scratch)

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
class _Place:
    actor: Any
    versions: Any  # ObjectRef that resolves to the versions once the server runs
    state: Literal["starting", "failing", "ready", "refused"] = "starting"


class Cluster:
    """`foley_client.render.engine.Engine` on a Ray cluster; created by `cluster`."""

    def __init__(
        self, servers: Sequence[str], bundle: Path | None, cache: Path | None, output: str, workers: int
    ) -> None:
        self._servers, self._workers = servers, workers
        self._arguments = bundle, cache, output
        self._places: dict[str, _Place] = {}
        self._versions: dict[str, str] | None = None
        self._reason = ""  # error of the last place that failed to start
        self._tell_at_s = time.monotonic() + PATIENCE_S
        for url in servers:
            self._places[url] = self._place(url, {"num_cpus": 1, "scheduling_strategy": "SPREAD"})

    def places(self) -> Mapping[str, int]:
        """See `Engine`. Without given servers, the places are the nodes with CPUs whose servers run.

        Raises:
            ServerUnavailable: No place is ready, and none is starting.
        """
        if not self._servers:
            self._follow_nodes()
        for name, place in self._places.items():
            if place.state in ("starting", "failing"):
                self._look_at(name, place)
        states = [place.state for place in self._places.values()]
        if states and "starting" not in states and "ready" not in states:
            raise ServerUnavailable(f"no worker of the cluster can render: {self._reason}")
        ready = {name: self._workers for name, place in self._places.items() if place.state == "ready"}
        self._tell(waiting=not ready, starting=states.count("starting"))
        return ready

    def submit(self, place: str, task: Task) -> "Future[Done | Failed]":
        """See `Engine`."""
        outcome: Future[Done | Failed] = Future()

        def ended(answer: "Future[Done | Failed]") -> None:
            error = answer.exception()
            if error is None:
                outcome.set_result(answer.result())
            else:  # the actor or its node died
                reason = f"the worker on {place} was lost ({_last_line(error)})"
                outcome.set_result(Failed(type(error).__name__, reason, lost=True))

        self._places[place].actor.render.remote(task).future().add_done_callback(ended)
        return outcome

    def stop(self) -> None:
        """See `Engine`."""
        for place in self._places.values():
            place.actor.stop.remote()

    def close(self) -> None:
        """Stop the servers that the actors started, and kill the actors."""
        closing = [place.actor.close.remote() for place in self._places.values()]
        ray.wait(closing, num_returns=len(closing), timeout=STOP_TIMEOUT_S)
        for place in self._places.values():
            ray.kill(place.actor)

    def _tell(self, waiting: bool, starting: int) -> None:
        now = time.monotonic()
        if not waiting:
            self._tell_at_s = now + PATIENCE_S
        elif now > self._tell_at_s:
            self._tell_at_s = now + 4 * PATIENCE_S
            state = f"{starting} starting, or waiting for processors" if starting else "the cluster has none"
            log.warning("waiting for a worker that can render (%s); `ray status` tells what there is", state)

    def _follow_nodes(self) -> None:
        nodes = {
            f"{node['NodeManagerHostname']} {node['NodeID'][:8]}": node
            for node in ray.nodes()
            if node["Alive"] and node["Resources"].get("CPU")
        }
        for name in self._places.keys() - nodes.keys():
            del self._places[name]
        for name in nodes.keys() - self._places.keys():
            resources = nodes[name]["Resources"]
            self._places[name] = self._place(
                None,
                {
                    "num_cpus": resources["CPU"],  # reserves the whole node for the server
                    "num_gpus": resources.get("GPU", 0),
                    "scheduling_strategy": NodeAffinitySchedulingStrategy(nodes[name]["NodeID"], soft=False),
                },
            )

    def _place(self, url: str | None, options: dict[str, Any]) -> _Place:
        # threads for the rows, and further ones for `stop` and other control calls
        actor = ray.remote(Worker).options(max_restarts=-1, max_concurrency=self._workers + 2, **options)
        handle: Any = actor.remote(url, *self._arguments)
        return _Place(handle, handle.versions.remote())

    def _look_at(self, name: str, place: _Place) -> None:
        """Mark a place ready once its server runs, if it has the same versions as the others."""
        if not ray.wait([place.versions], timeout=0)[0]:
            return
        try:
            versions = ray.get(place.versions)
        except (RayError, FoleyError) as error:
            place.state, self._reason = "failing", f"{name}: {_last_line(error)}"
            place.versions = place.actor.versions.remote()
            return
        self._versions = self._versions or versions
        place.state = "ready" if versions == self._versions else "refused"
        if place.state == "refused":
            log.warning("%s is not used: it serves another bundle than the others, or has other versions", name)


def _knock(address: str) -> None:
    """Check that a server listens at HOST:PORT, because Ray itself retries for minutes.

    Raises:
        OSError: No server listens there.
    """
    if place := re.fullmatch(r"(?:ray://)?([^:/]+|\[.+\]):(\d{1,5})", address):
        socket.create_connection((place[1].strip("[]"), int(place[2])), KNOCK_TIMEOUT_S).close()


def _last_line(error: BaseException) -> str:
    return str(error).strip().rpartition("\n")[2]


@contextmanager
def cluster(
    address: str, servers: Sequence[str], bundle: Path | None, cache: Path | None, output: str, workers: int
) -> Iterator[Cluster]:
    """Join the cluster at `address`, or start one on this machine for "local", and leave it on exit.

    Args:
        address: Address of the cluster, "auto" or "local", as for `ray.init`.
        servers: Addresses of Triton servers; if empty, every node starts one.
        bundle: Bundle of started servers; None for the default.
        cache: Folder of cached envelopes and embeddings on each node; None for no cache.
        output: Output folder or URL, accessible from every node.
        workers: Number of concurrent rows on each server.

    Yields:
        The engine.

    Raises:
        ServerUnavailable: The cluster cannot be joined.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray sends usage reports by default
    with redirect_stdout(sys.stderr):  # Ray prints to stdout, which is reserved for results
        try:
            _knock(address)
            ray.init(address, log_to_driver=False, configure_logging=False)
        except (RayError, OSError, ValueError, RuntimeError) as error:
            raise ServerUnavailable(
                f"no Ray cluster can be joined at {address} ({_last_line(error)}); see `ray status`"
            ) from error
        try:
            joined = Cluster(servers, bundle, cache, output, workers)
            try:
                yield joined
            finally:
                joined.close()
        finally:
            ray.shutdown()
