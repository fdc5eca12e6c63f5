"""What the soak's callers were told, and the checks that it stays true: nothing is lost, done twice, or left behind."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
from google.longrunning import operations_pb2, operations_pb2_grpc

from foley.errors import FoleyError, NotFound
from foley_client import FoleyClient, GenerationResult
from foley_pipeline.api import foley_pb2 as pb

END_TIMEOUT_S = 300.0  # for the end of all jobs, and for their removal


@dataclass
class Accepted:
    """A long-running generation whose creation was acknowledged.

    Attributes:
        name: Name of its operation.
        expected: Sound of an undisturbed run.
        taken_back: Whether its caller has asked for its cancellation.
        state: Final state that a caller has seen.
        result: Result that a caller has seen.
    """

    name: str
    expected: GenerationResult
    taken_back: bool = False
    state: str = ""
    result: GenerationResult | None = None


@dataclass
class Ledger:
    """What the callers were told. Thread-safe.

    Attributes:
        report: Called with progress messages.
        accepted: Long-running generations, by request id.
        ended: Number of generations by how they ended.
        seconds: Durations of the calls that have succeeded, by kind.
        retries: Number of retries by error.
        faults: One sentence for each violated guarantee.
    """

    report: Callable[[str], None]
    accepted: dict[str, Accepted] = field(default_factory=dict)
    ended: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    retries: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def fault(self, what: str) -> None:
        """Record a violated guarantee."""
        with self.lock:
            self.faults.append(what)
        self.report(f"FAULT: {what}")

    def count(self, how: str, kind: str = "", seconds: float = 0.0) -> None:
        """Count a generation by how it ended; its duration under `kind`, if given."""
        with self.lock:
            self.ended[how] += 1
            if kind:
                self.seconds.setdefault(kind, []).append(seconds)

    def retry(self, error: FoleyError) -> None:
        """Count a retry of a caller."""
        with self.lock:
            self.retries[type(error).__name__] += 1

    def check_sound(self, result: GenerationResult, expected: GenerationResult) -> None:
        """Check a sound against that of an undisturbed run."""
        if not same(result, expected):
            self.fault("a sound differs from that of an undisturbed run")

    def accept(self, request_id: str, name: str, expected: GenerationResult) -> None:
        """Record that a creation was acknowledged, once or again."""
        with self.lock:
            known = self.accepted.setdefault(request_id, Accepted(name, expected))
        if known.name != name:
            self.fault(f"{request_id} was accepted twice, as {known.name} and {name}")

    def take_back(self, request_id: str) -> None:
        """Record that a caller is about to cancel."""
        with self.lock:
            self.accepted[request_id].taken_back = True

    def see(self, request_id: str, state: str, result: GenerationResult | None = None) -> None:
        """Record a state that a caller was told, and the result; once known, they never change."""
        one = self.accepted[request_id]
        if one.state and state != one.state:
            self.fault(f"{request_id} is {state}, after it was {one.state}")
        if state not in ("queued", "running"):
            one.state = state
        if state == "failed" or (state == "cancelled" and not one.taken_back):
            self.fault(f"{request_id} is {state}")
        if result and one.result and not same(result, one.result, 0):
            self.fault(f"the sound of {request_id} has changed")
        if result and not one.result:
            one.result = result
            if not same(result, one.expected):
                self.fault(f"the sound of {request_id} differs from that of an undisturbed run")


def same(ours: GenerationResult, theirs: GenerationResult, tolerance: float = 1e-3) -> bool:
    """Return whether two sounds are equal within a tolerance; batching changes the last bits."""
    return len(ours.takes) == len(theirs.takes) and all(
        a.waveform.shape == b.waveform.shape and bool(np.allclose(a.waveform, b.waveform, rtol=0, atol=tolerance))
        for a, b in zip(ours.takes, theirs.takes, strict=True)
    )


def check_jobs(ledger: Ledger, apis: Sequence[str]) -> None:
    """Check that each accepted generation exists exactly once, has ended as its caller was told, and sounds right.

    Args:
        ledger: What the callers were told.
        apis: HOST:PORT of the APIs, which must give equal answers.
    """
    listings = [_ended_operations(api) for api in apis]
    for api, listing in zip(apis, listings, strict=True):
        names = {one.name for one in listing}
        if len(names) != len(listing):
            ledger.fault(f"{api} lists an operation twice")
        numbers = Counter(_request_id(one) for one in listing)
        for request_id, one in ledger.accepted.items():
            if one.name not in names:
                ledger.fault(f"{request_id} is lost: {api} does not list it")
            elif numbers[request_id] != 1:
                ledger.fault(f"{request_id} is there {numbers[request_id]} times")
        for name in names - {one.name for one in ledger.accepted.values()}:
            ledger.fault(f"{api} lists {name}, which no caller has created")
    if any(listing != listings[0] for listing in listings):
        ledger.fault("the APIs list different operations")
    for api in apis:
        with FoleyClient(f"grpc://{api}") as client:
            for request_id, one in ledger.accepted.items():
                with suppress(NotFound):  # reported above
                    job = client.job(one.name)
                    state = job.status.state
                    ledger.see(request_id, state, job.wait() if state == "succeeded" else None)


def check_removal(
    ledger: Ledger,
    apis: Sequence[str],
    rows: Callable[[], int],
    media: Callable[[], list[Path]],
    timeout_s: float = END_TIMEOUT_S,
) -> None:
    """Delete all generations, in turn through each API, and check that no row and no file of any job remains.

    Args:
        ledger: Receives the faults.
        apis: HOST:PORT of the APIs.
        rows: Returns the number of rows in the store.
        media: Returns the files of jobs in the storage of media.
        timeout_s: Time for the removal.
    """
    clients = [FoleyClient(f"grpc://{api}") for api in apis]
    for i, one in enumerate(ledger.accepted.values()):
        with suppress(NotFound):  # reported before
            clients[i % len(clients)].job(one.name).delete()
    for client in clients:
        if left := [one.request_id for one in client.jobs()]:
            ledger.fault(f"{len(left)} generations are listed after their deletion")
        client.close()
    until = time.monotonic() + timeout_s
    while (rows() or media()) and time.monotonic() < until:
        time.sleep(0.5)
    if number := rows():
        ledger.fault(f"{number} rows are left in the store")
    if files := media():
        ledger.fault(f"{len(files)} files are left in the storage of media, such as {files[0]}")


def _ended_operations(api: str) -> list[operations_pb2.Operation]:
    """Wait until all operations have ended, and return them."""
    until = time.monotonic() + END_TIMEOUT_S
    while True:
        found = list(_operations(api))
        if not (running := [one.name for one in found if not one.done]):
            return found
        if time.monotonic() > until:
            raise TimeoutError(f"{len(running)} generations have not ended, such as {running[0]}")
        time.sleep(0.5)


def _operations(api: str) -> Iterator[operations_pb2.Operation]:
    with grpc.insecure_channel(api) as channel:
        stub, token = operations_pb2_grpc.OperationsStub(channel), ""
        while True:
            request = operations_pb2.ListOperationsRequest(page_size=100, page_token=token)
            page = stub.ListOperations(request, timeout=60)
            yield from page.operations
            if not (token := page.next_page_token):
                return


def _request_id(operation: operations_pb2.Operation) -> str:
    metadata = pb.GenerationMetadata()
    operation.metadata.Unpack(metadata)
    return str(metadata.request_id)
