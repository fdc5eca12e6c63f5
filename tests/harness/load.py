"""Load test: the latency of two equal APIs, of which one also has many clients that are idle, slow, or do not read."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
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
        seconds: Durations of the calls, by method and by whether the API had bad clients.
        errors: One sentence for each ordinary call that has failed.
        resources: What the APIs used at different times.
        memory_bytes: Growth of the memory of the API with the bad clients.
        bad: How often connections of each kind were opened.
    """

    seconds: dict[tuple[str, bool], list[float]] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    resources: list[str] = field(default_factory=list)
    memory_bytes: int = 0
    bad: list[str] = field(default_factory=list)

    def table(self) -> str:
        """Return the numbers as a table."""
        lines = [f"{'':14}{'':8}{'without':>10}{'with':>10}{'ratio':>8}"]
        for method in dict.fromkeys(method for method, _ in self.seconds):
            for name, share in (("median", 50), ("p95", 95)):
                without, among = (1000 * np.percentile(self.seconds[method, bad], share) for bad in (False, True))
                lines.append(f"{method:14}{name:8}{without:7.1f} ms{among:7.1f} ms{among / without:8.2f}")
        return "\n".join([*lines, *self.resources, *(f"opened: {one}" for one in self.bad)])


def load(loaded: ApiServer, quiet: ApiServer, bad: int, ordinary: int, calls: int) -> Outcome:
    """Measure the latency of ordinary clients of two APIs side by side: calls to one and the other alternate.

    Args:
        loaded: An API that has the bad clients, too.
        quiet: Another API, on the same Triton.
        bad: Number of connections of bad clients.
        ordinary: Number of connections of ordinary clients to each API, which take turns.
        calls: Number of calls of each method to each API.
    """
    outcome = Outcome()
    with ExitStack() as stack:
        separate = [("grpc.use_local_subchannel_pool", 1)]  # or all channels share a connection
        channels = [
            [stack.enter_context(grpc.insecure_channel(server.grpc, separate)) for _ in range(ordinary)]
            for server in (quiet, loaded)
        ]
        operations = [_create(one[0]) for one in channels]
        _measure(channels, operations, ordinary, Outcome())  # opens the connections
        outcome.resources.append(_resources(loaded, "before"))
        memory = psutil.Process(loaded.process.pid).memory_info
        before = memory().rss
        with bad_clients(loaded, bad, operations[1], outcome):
            _measure(channels, operations, calls, outcome)
            outcome.memory_bytes = memory().rss - before
            outcome.resources.append(_resources(loaded, f"with {bad} bad connections"))
        _measure(channels, operations, ordinary, Outcome())
        outcome.resources.append(_resources(loaded, "after"))
        outcome.resources.append(_resources(quiet, "without bad connections, after as many calls"))
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


def _measure(channels: list[list[grpc.Channel]], operations: list[str], calls: int, outcome: Outcome) -> None:
    """Make `calls` calls of each method to the quiet and to the loaded API, on the connections in turn."""
    request = pb.GenerateRequest(options=_message(1))

    def generate(channel: grpc.Channel, _: str) -> None:
        events = foley_pb2_grpc.FoleyServiceStub(channel).Generate(iter([request]), timeout=CALL_TIMEOUT_S)
        assert list(events)[-1].HasField("finished")

    def get(channel: grpc.Channel, operation: str) -> None:
        stub = operations_pb2_grpc.OperationsStub(channel)
        assert stub.GetOperation(operations_pb2.GetOperationRequest(name=operation), timeout=CALL_TIMEOUT_S).done

    def call(number: int) -> None:
        for name, method in (("Generate", generate), ("GetOperation", get)):
            for loaded in (False, True) if number % 2 else (True, False):
                one = channels[loaded]
                began = time.monotonic()
                try:
                    method(one[number % len(one)], operations[loaded])
                except grpc.RpcError as error:
                    outcome.errors.append(f"{name} ended {error.code().name}: {error.details()}")
                outcome.seconds.setdefault((name, loaded), []).append(time.monotonic() - began)

    with ThreadPoolExecutor(CONCURRENT) as threads:
        list(threads.map(call, range(calls)))


def _resources(server: ApiServer, when: str) -> str:
    process = psutil.Process(server.process.pid)
    memory, cpu = process.memory_info().rss / 2**20, process.cpu_times()
    used = f"{memory:.0f} MiB, {process.num_fds()} descriptors, {process.num_threads()} threads"
    return f"API {when}: {used}, {cpu.user + cpu.system:.0f} s of CPU time so far"
