"""The Tritons that this server sends work to: one embedded, or remote ones by address or DNS name."""

import logging
import re
import socket
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass

from foley.errors import ServerUnavailable, SettingError
from foley_pipeline.triton import TritonClient, server_address
from foley_server.launcher.supervisor import EmbeddedTriton, RemoteTriton, Source, Supervisor

RESOLVE_S = 10.0  # interval between look-ups of DNS names
RETRY_AFTER_S = 2.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Status:
    """State of one Triton, for metrics.

    Attributes:
        available: Whether it takes work.
        starts: Number of successful starts or connections.
        bundle_sha256: Digest of its bundle; None while it is not available.
        metrics: URL of its Prometheus metrics; None for a remote Triton, and while it is not available.
    """

    available: bool
    starts: int
    bundle_sha256: str | None
    metrics: str | None


class TritonPool:
    """Keeps Tritons available in background threads, from `start` to `stop`. Thread-safe.

    Args:
        source: An embedded Triton, or the addresses of remote ones: `HOST:PORT`, the name of one Triton, or
            `dns:///NAME:PORT`, which is looked up every `RESOLVE_S` seconds and stands for a Triton `IP:PORT` for each
            of its addresses.
        on_change: Called from a background thread with whether any Triton is available, whenever that changes.
        hang_timeout_s: Time without a response from a model with pending calls, after which a Triton is restarted.

    Attributes:
        started: Done when the first Triton is available; cancelled by `stop`. It has the FoleyError of an embedded
            Triton that failed to start. Remote ones that cannot be reached are tried again until `stop`.

    Raises:
        SettingError: An address is malformed, or there is none.
    """

    def __init__(
        self, source: EmbeddedTriton | Sequence[str], on_change: Callable[[bool], None], hang_timeout_s: float = 300.0
    ) -> None:
        self._on_change = on_change
        self._hang_timeout_s = hang_timeout_s
        self._stopping = threading.Event()
        self._lock = threading.Lock()  # of the attributes below
        self._supervisors: dict[str, Supervisor] = {}
        self._resolved: set[str] = set()  # those of them that were found in DNS
        self._gone: set[str] = set()  # no longer in DNS: they get no new work, and are dropped once disconnected
        self._change_lock = threading.Lock()  # of those below, and of the order of callbacks
        self._was_ready = False
        self._bundles: frozenset[str] = frozenset()
        self.started: Future[None] = Future()
        sources: list[Source] = [source] if isinstance(source, EmbeddedTriton) else []
        self._names: list[tuple[str, int]] = []
        for address in [] if isinstance(source, EmbeddedTriton) else source:
            if address.startswith("dns:"):
                self._names.append(_dns_name(address))
            else:
                sources.append(RemoteTriton(server_address(address)))
        if not sources and not self._names:
            raise SettingError("there is no Triton to connect to; give at least one address as HOST:PORT")
        for one in sources:
            self._supervisors[one.name] = self._supervisor(one)

    def _supervisor(self, source: Source) -> Supervisor:
        supervisor = Supervisor(source, self._changed, self._hang_timeout_s)
        supervisor.started.add_done_callback(self._first_started)
        return supervisor

    def start(self) -> None:
        """Start or connect to the Tritons in the background."""
        for supervisor in self._supervisors.values():
            supervisor.start()
        if self._names:
            threading.Thread(target=self._resolve, name="triton-dns", daemon=True).start()

    def stop(self) -> None:
        """Stop an embedded Triton, also one that is starting, and disconnect from remote ones."""
        self._stopping.set()
        self.started.cancel()
        with self._lock:
            supervisors = list(self._supervisors.values())
        for supervisor in supervisors:
            supervisor.cancel()
        for supervisor in supervisors:
            supervisor.stop()

    @property
    def ready(self) -> bool:
        """Whether at least one Triton is available."""
        return bool(self.available())

    def available(self) -> list[str]:
        """Return the names of the Tritons that take work."""
        with self._lock:
            return [name for name, one in self._supervisors.items() if one.running and name not in self._gone]

    def client(self, name: str) -> TritonClient:
        """Return the connection to a Triton; after it is lost, call this method again for the next one.

        Raises:
            ServerUnavailable: The Triton is not available; `retry_after_s` is set.
        """
        with self._lock:
            supervisor = self._supervisors.get(name)
        if supervisor is None:
            raise _unavailable(f"Triton {name} is gone; use another")
        return supervisor.client()

    def any(self) -> TritonClient:
        """Return the connection to an available Triton.

        Raises:
            ServerUnavailable: No Triton is available; `retry_after_s` is set.
        """
        for name in self.available():
            with suppress(ServerUnavailable):  # lost since
                return self.client(name)
        raise _unavailable("no Triton is available; try again in a moment")

    def failed(self, name: str, error: Exception) -> bool:
        """Check a Triton after a request has failed on it; blocks for the duration of a denoiser step.

        Args:
            name: The Triton.
            error: The error of the request.

        Returns:
            Whether the Triton, not the request, is at fault. It is not available then until it has recovered: an
            embedded one is killed and started again, to a remote one a new connection is made.
        """
        with self._lock:
            supervisor = self._supervisors.get(name)
        return supervisor is None or supervisor.failed(error)

    @property
    def statuses(self) -> dict[str, Status]:
        """The state of each Triton, by name."""
        with self._lock:
            supervisors = dict(self._supervisors)
            gone = set(self._gone)
        found = {}
        for name, supervisor in supervisors.items():
            running = supervisor.running
            found[name] = Status(
                running is not None and name not in gone,
                supervisor.starts,
                running.client.versions["bundle_sha256"] if running else None,
                running.metrics if running else None,
            )
        return found

    def _first_started(self, started: "Future[None]") -> None:
        """Pass the outcome of the first start of a Triton on to `self.started`."""
        with suppress(InvalidStateError):  # another one was first, or the pool is stopping
            if started.cancelled():
                return
            if error := started.exception():
                self.started.set_exception(error)
            else:
                self.started.set_result(None)

    def _changed(self) -> None:
        with self._change_lock:
            bundles = frozenset(one.bundle_sha256 or "" for one in self.statuses.values() if one.available)
            if len(bundles) > 1 and bundles != self._bundles:
                log.warning("the Tritons serve different bundles: %s", ", ".join(sorted(bundles)))
                self._bundles = bundles
            if self.ready != self._was_ready:
                self._was_ready = not self._was_ready
                self._on_change(self._was_ready)

    def _resolve(self) -> None:
        """Look up the DNS names until the pool stops."""
        found: dict[tuple[str, int], set[str]] = {}
        failing = set[tuple[str, int]]()
        while not self._stopping.is_set():
            for name in self._names:
                try:
                    found[name] = _addresses(*name)
                    failing.discard(name)
                except (OSError, UnicodeError) as error:  # the last addresses stay: a failing DNS server ends no work
                    if name not in failing:
                        log.warning("cannot look up %s (%s); check the name and its DNS server", name[0], error)
                    failing.add(name)
            self._update(set[str]().union(*found.values()))
            self._stopping.wait(RESOLVE_S)

    def _update(self, addresses: set[str]) -> None:
        """Keep a supervisor for each of the resolved addresses, and for others while they are connected."""
        with self._lock:
            if self._stopping.is_set():
                return
            dropped = {one for one in self._resolved - addresses if not self._supervisors[one].running}
            added = addresses - self._supervisors.keys()
            self._resolved = (self._resolved | added) - dropped
            self._gone = self._resolved - addresses
            stopped = [self._supervisors.pop(one) for one in dropped]
            started = [self._supervisor(RemoteTriton(one)) for one in sorted(added)]
            self._supervisors |= {one.name: one for one in started}
        for one in started:
            one.start()
        for one in stopped:
            one.stop()
        self._changed()


def _dns_name(address: str) -> tuple[str, int]:
    match = re.fullmatch(r"dns:///([\w.-]+):(\d{1,5})", address)
    if not match:
        raise SettingError(f"the address of the Tritons is {address!r}; give it as dns:///NAME:PORT")
    return match[1], int(match[2])


def _addresses(name: str, port: int) -> set[str]:
    """Return `IP:PORT` for each address of a DNS name.

    Raises:
        OSError: The name has none, or cannot be looked up.
        UnicodeError: The name is not a DNS name.
    """
    found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
    hosts = {str(address[0]) for *_, address in found}
    return {f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host in hosts}


def _unavailable(message: str) -> ServerUnavailable:
    error = ServerUnavailable(message)
    error.retry_after_s = RETRY_AFTER_S
    return error
