"""Faults of a cluster: processes are killed and started again, or hang."""

import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal, TypeVar

from foley_server.jobs.store import LEASE_S
from harness.api_server import await_serving
from harness.cluster import Api, Cluster, Triton

Fault = Literal["API", "Triton", "model", "Postgres", "hanging API"]
Part = TypeVar("Part")

DOWN_S = 2.0  # maximum time for which something that was killed stays away
HANG_S = (LEASE_S + 2, LEASE_S + 8)  # the leases of an API that hangs for so long lapse
RECOVERY_TIMEOUT_S = 120.0


class Faults:
    """Injects faults. Not thread-safe.

    Args:
        cluster: The cluster.
        rng: Random numbers.
        report: Called with progress messages.

    Attributes:
        kills: Number of faults by kind.
    """

    def __init__(self, cluster: Cluster, rng: random.Random, report: Callable[[str], None]) -> None:
        self._cluster, self._rng, self._report = cluster, rng, report
        self._threads = ThreadPoolExecutor(8)
        self._repairs: dict[str, Future[None]] = {}
        self.kills: Counter[str] = Counter()

    def inject(self, fault: Fault) -> None:
        """Inject a fault, which is repaired in the background, into a part of the cluster that works."""
        self._report(f"fault: {fault}")
        self.kills[fault] += 1
        if fault == "Postgres":
            self._break("Postgres", self._crash_postgres)
        elif fault in ("API", "hanging API"):
            i, api = self._pick("API", self._cluster.apis)
            self._break(f"API {i}", lambda: self._hang(api) if fault == "hanging API" else self._kill_api(api))
        else:
            i, triton = self._pick("Triton", self._cluster.tritons)
            self._break(f"Triton {i}", lambda: self._kill_triton(triton, fault == "model"))

    def recover(self) -> None:
        """Wait until everything works again.

        Raises:
            TimeoutError: It does not.
            RuntimeError: A process could not be started.
        """
        for repair in self._repairs.values():
            repair.result(RECOVERY_TIMEOUT_S)
        for api in self._cluster.apis:
            await_serving(api.server, RECOVERY_TIMEOUT_S)

    def _pick(self, kind: str, parts: Sequence[Part]) -> tuple[int, Part]:
        """Return a part that works, and its number; wait for one if there is none."""
        numbers = list(range(len(parts)))
        self._rng.shuffle(numbers)
        working = [i for i in numbers if f"{kind} {i}" not in self._repairs or self._repairs[f"{kind} {i}"].done()]
        i = working[0] if working else numbers[0]
        return i, parts[i]

    def _break(self, part: str, fault: Callable[[], None]) -> None:
        if part in self._repairs:
            self._repairs[part].result(RECOVERY_TIMEOUT_S)
        self._repairs[part] = self._threads.submit(fault)

    def _stay_away(self) -> None:
        time.sleep(self._rng.uniform(0, DOWN_S))

    def _crash_postgres(self) -> None:
        assert self._cluster.postgres is not None
        self._cluster.postgres.stop()
        self._stay_away()
        self._cluster.postgres.start()

    def _kill_api(self, api: Api) -> None:
        api.kill()
        self._stay_away()
        api.start()

    def _hang(self, api: Api) -> None:
        api.hang(self._rng.uniform(*HANG_S))

    def _kill_triton(self, triton: Triton, model: bool) -> None:
        triton.kill(self._rng, model)
        self._stay_away()
        triton.start()
