"""Load test of an API: the latency of ordinary clients, with and without many that are idle, slow, or do not read."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
import psutil
from google.longrunning import operations_pb2, operations_pb2_grpc

from foley.options import GenerateOptions
from foley_pipeline.api import foley_pb2 as pb
from foley_pipeline.api import foley_pb2_grpc
from foley_pipeline.api.messages import request_to_proto
from foley_pipeline.request import EnvelopeInput, GenerationRequest
from harness.api_server import ApiServer

CONCURRENT = 2  # ordinary calls
CALL_TIMEOUT_S = 120.0
RESULT_S = 30  # of sound; 2 MB, more than a connection holds
OPEN_TIMEOUT_S = 120.0


@dataclass
class Outcome:
    """Result of a load.

    Attributes:
        seconds: Durations of the calls, by method and by whether there were bad clients.
        errors: One sentence for each ordinary call that has failed.
        resources: What the API used at different times.
        bad: How often connections of each kind were opened.
    """

    seconds: dict[tuple[str, bool], list[float]] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    resources: list[str] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)

    def table(self) -> str:
        """Return the numbers as a table."""
        lines = [f"{'':14}{'':8}{'without':>10}{'with':>10}{'ratio':>8}"]
        for method in dict.fromkeys(method for method, _ in self.seconds):
            for name, share in (("median", 50), ("p95", 95)):
                without, among = (1000 * np.percentile(self.seconds[method, bad], share) for bad in (False, True))
                lines.append(f"{method:14}{name:8}{without:7.1f} ms{among:7.1f} ms{among / without:8.2f}")
        return "\n".join([*lines, *self.resources, *(f"opened: {one}" for one in self.bad)])


def load(server: ApiServer, bad: int, ordinary: int, calls: int, rounds: int, report: Callable[[str], None]) -> Outcome:
    """Measure the latency of ordinary clients in turn with and without bad ones.

    Args:
        server: The API.
        bad: Number of connections of bad clients.
        ordinary: Number of connections of ordinary clients, which take turns.
        calls: Number of calls of each method per measurement.
        rounds: Number of measurements of each kind.
        report: Called with progress messages.
    """
    outcome = Outcome()
    with ExitStack() as stack:
        separate = [("grpc.use_local_subchannel_pool", 1)]  # or all channels share a connection
        channels = [stack.enter_context(grpc.insecure_channel(server.grpc, separate)) for _ in range(ordinary)]
        operation = _create(channels[0])
        _measure(channels, operation, max(calls, ordinary), Outcome())  # opens the connections
        outcome.resources.append(_resources(server, "before"))
        for number in range(rounds):
            report(f"round {number + 1} of {rounds}")
            _measure(channels, operation, calls, outcome, False)
            with bad_clients(server, bad, operation, outcome):
                _measure(channels, operation, calls, outcome, True)
                outcome.resources.append(_resources(server, f"with {bad} bad connections"))
        _measure(channels, operation, calls, outcome, False)
        outcome.resources.append(_resources(server, "after"))
    return outcome


@contextmanager
def bad_clients(server: ApiServer, count: int, operation: str, outcome: Outcome) -> Iterator[None]:
    """Keep connections of bad clients open while the context is active."""
    command = [sys.executable, "-m", "harness.bad_clients", server.grpc, str(count), operation]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "open\n", "the bad clients did not start"
            yield
        finally:
            outcome.bad.append(process.communicate(timeout=OPEN_TIMEOUT_S)[0].strip())


def _message(seconds: int) -> pb.GenerateOptions:
    envelope = EnvelopeInput(np.full(100 * seconds, 0.1, np.float32), 16_000 * seconds)
    options = GenerateOptions(text="glass", steps=1)
    return request_to_proto(GenerationRequest(envelope=envelope, options=options))


def _create(channel: grpc.Channel) -> str:
    """Create a generation with a large result, wait for its end, and return its name."""
    options = pb.CreateGenerationOptions(request_id="00000000-0000-4000-8000-000000000000", options=_message(RESULT_S))
    stub = foley_pb2_grpc.FoleyServiceStub(channel)
    created = stub.CreateGeneration(iter([pb.CreateGenerationRequest(options=options)]), timeout=CALL_TIMEOUT_S)
    for _ in stub.WatchGeneration(pb.WatchGenerationRequest(name=created.name), timeout=CALL_TIMEOUT_S):
        pass
    return str(created.name)


def _measure(channels: list[grpc.Channel], operation: str, calls: int, outcome: Outcome, bad: bool = False) -> None:
    """Make `calls` calls of each method, on the connections in turn."""
    request = pb.GenerateRequest(options=_message(1))

    def generate(channel: grpc.Channel) -> None:
        events = foley_pb2_grpc.FoleyServiceStub(channel).Generate(iter([request]), timeout=CALL_TIMEOUT_S)
        assert list(events)[-1].HasField("finished")

    def get(channel: grpc.Channel) -> None:
        stub = operations_pb2_grpc.OperationsStub(channel)
        assert stub.GetOperation(operations_pb2.GetOperationRequest(name=operation), timeout=CALL_TIMEOUT_S).done

    def call(number: int) -> None:
        for name, method in (("Generate", generate), ("GetOperation", get)):
            began = time.monotonic()
            try:
                method(channels[number % len(channels)])
            except grpc.RpcError as error:
                outcome.errors.append(f"{name} ended {error.code().name}: {error.details()}")
            outcome.seconds.setdefault((name, bad), []).append(time.monotonic() - began)

    with ThreadPoolExecutor(CONCURRENT) as threads:
        list(threads.map(call, range(calls)))


def _resources(server: ApiServer, when: str) -> str:
    process = psutil.Process(server.process.pid)
    memory, cpu = process.memory_info().rss / 2**20, process.cpu_times()
    used = f"{memory:.0f} MiB, {process.num_fds()} descriptors, {process.num_threads()} threads"
    return f"API {when}: {used}, {cpu.user + cpu.system:.0f} s of CPU time so far"
