"""Soak test of the API: many concurrent generations while callers cancel and processes are killed.

At the end, every requested generation exists exactly once, with the sound of an undisturbed run, or was cancelled by
its caller. The API server that ran through the crashes of callers and of Triton has leaked nothing.
"""

import random
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from foley.errors import Cancelled, FoleyError, InvalidInput, NotFound
from foley.options import GenerateOptions
from foley_bench.small_video import write_small_video
from foley_client import CancelToken, FoleyClient, GenerationResult
from foley_pipeline.request import EnvelopeInput, GenerationRequest
from foley_server.launcher.triton import claim_port
from harness import leaks
from harness.api_server import ApiServer, api_server, await_serving

Result = TypeVar("Result")

CALLERS = 6
RETRY_TIMEOUT_S = 300.0  # for which a caller retries while servers restart
JOB_SHARE, CANCEL_SHARE, CRASH_SHARE = 0.4, 0.15, 0.03
DISTURB_S = (4.0, 12.0)  # between two faults
GENERATIONS_A_FAULT, LEAST_FAULTS = 20, 3
RELAPSE_SHARE = 0.1  # of faults injected before the server has recovered; more would amount to one long outage


@dataclass
class Outcome:
    """Result of a soak.

    Attributes:
        ended: Number of generations by how they ended.
        kills: Number of kills by kind of process.
        faults: One sentence for each violated guarantee.
        seconds: Duration of the soak.
    """

    ended: Counter[str] = field(default_factory=Counter)
    kills: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0


@dataclass
class Soak:
    """State shared by the callers and the fault injector.

    Attributes:
        bundle: Folder of a small bundle.
        folder: Folder for data, logs and videos.
        random: Random numbers of the fault injector.
        report: Called with progress messages.
        outcome: Result so far.
        lock: Guards `outcome` and `expected`.
        expected: Request id to expected sound of each long-running generation; None if its caller cancelled it.
    """

    bundle: Path
    folder: Path
    random: random.Random
    report: Callable[[str], None]
    outcome: Outcome = field(default_factory=Outcome)
    lock: threading.Lock = field(default_factory=threading.Lock)
    expected: dict[str, GenerationResult | None] = field(default_factory=dict)

    def count(self, how: str) -> None:
        """Count a generation by how it ended."""
        with self.lock:
            self.outcome.ended[how] += 1

    def fault(self, what: str) -> None:
        """Record and report a violated guarantee."""
        with self.lock:
            self.outcome.faults.append(what)
        self.report(f"FAULT: {what}")


def soak(bundle: Path, folder: Path, count: int, seed: int, report: Callable[[str], None]) -> Outcome:
    """Run many generations while callers crash and processes are killed.

    In the first half, only Triton and its models are killed; in the second half, the API server is killed, too.

    Args:
        bundle: Folder of a small bundle.
        folder: An empty folder, for data, logs and videos.
        count: Number of generations.
        seed: Seed of the requests and of the kills.
        report: Called with progress messages.
    """
    state = Soak(bundle, folder, random.Random(seed), report)
    began = time.monotonic()
    requests = _requests(folder)
    port = claim_port("127.0.0.1", 0)  # kept across restarts
    with ExitStack() as stack:
        server = stack.enter_context(_server(state, port))
        with server.client() as client:
            expected = [client.backend.generate(one) for one in requests]
            for one in requests:  # warm up one-time allocations before the baseline snapshot
                client.backend.wait(client.backend.create(one))
        before = leaks.settled(server)
        report(f"{count // 2} generations; callers crash, Triton is killed")
        _phase(state, lambda: server, requests, expected, count // 2, lambda: _kill_triton(state, server))
        await_serving(server)
        state.outcome.faults += leaks.leaks(before, leaks.settled(server, before))
    with ExitStack() as stack:
        current = [stack.enter_context(_server(state, port))]
        report(f"{count - count // 2} generations; the API itself is killed too")

        def restart() -> None:
            if state.random.random() < 0.5:
                _kill_triton(state, current[0])
                return
            state.outcome.kills["API"] += 1
            current[0].kill()
            current[0] = stack.enter_context(_server(state, port))

        _phase(state, lambda: current[0], requests, expected, count - count // 2, restart)
        await_serving(current[0])
        check_jobs(state, current[0])
    state.outcome.seconds = time.monotonic() - began
    return state.outcome


def _server(state: Soak, port: int) -> "AbstractContextManager[ApiServer]":
    return api_server(state.folder, bundle=state.bundle, port=port, running=4, waiting=CALLERS, grace=5)


def _requests(folder: Path) -> list[GenerationRequest]:
    """Return different small requests: with and without a video, with one and with several variations."""
    video = folder / "small.mp4"
    write_small_video(video)
    envelope = EnvelopeInput((0.2 + 0.2 * np.sin(np.arange(100) / 9)).astype(np.float32), 16_000)
    options = [GenerateOptions(text=text, steps=steps) for text, steps in (("glass", 1), ("wood", 4), ("", 8))]
    options.append(GenerateOptions(text="glass", steps=1, variations=3, loudness="follow"))
    options.append(GenerateOptions(text="glass", steps=3, sampler="ddim", eta=1.0, seed=5))
    on_envelope = [GenerationRequest(envelope=envelope, options=one) for one in options]
    return [*on_envelope, GenerationRequest(video, options=GenerateOptions(text="metal", steps=2))]


def _same(ours: GenerationResult, theirs: GenerationResult) -> bool:
    """Return whether two sounds are equal within 1e-3; batching changes the last bits."""
    if len(ours.takes) != len(theirs.takes):
        return False
    pairs = zip(ours.takes, theirs.takes, strict=True)
    return all(
        a.waveform.shape == b.waveform.shape and bool(np.allclose(a.waveform, b.waveform, atol=1e-3)) for a, b in pairs
    )


def _phase(
    state: Soak,
    server: Callable[[], ApiServer],
    requests: list[GenerationRequest],
    expected: list[GenerationResult],
    count: int,
    disturb: Callable[[], None],
) -> None:
    """Run `count` generations, `CALLERS` at a time, while `disturb` is called at random times.

    The number of faults is limited to one for every `GENERATIONS_A_FAULT` generations, with a minimum of
    `LEAST_FAULTS`: with a fixed rate, a slow machine would complete nothing between two faults.
    """
    over = threading.Event()

    def disturber() -> None:
        for _ in range(max(LEAST_FAULTS, count // GENERATIONS_A_FAULT)):
            if state.random.random() > RELAPSE_SHARE:
                await_serving(server())
            if over.wait(state.random.uniform(*DISTURB_S)):
                return
            disturb()

    disturbing = threading.Thread(target=disturber)
    disturbing.start()
    try:
        seeds = [state.random.randrange(2**32) for _ in range(count)]
        with ThreadPoolExecutor(CALLERS) as pool:
            try:
                list(pool.map(lambda seed: _one(state, server, requests, expected, random.Random(seed)), seeds))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)  # interrupted by the user: start no further generations
                raise
    finally:
        over.set()
        disturbing.join()


def _one(
    state: Soak,
    server: Callable[[], ApiServer],
    requests: list[GenerationRequest],
    expected: list[GenerationResult],
    rng: random.Random,
) -> None:
    """Run one generation in a randomly chosen way."""
    i = rng.randrange(len(requests))
    way = rng.random()
    try:
        if way < JOB_SHARE:
            _create_job(state, server, requests[i], expected[i], rng)
        elif way < JOB_SHARE + CANCEL_SHARE:
            _cancel(state, server, requests[i], rng)
        elif way < JOB_SHARE + CANCEL_SHARE + CRASH_SHARE:
            _crash(state, server(), rng)
        else:
            result = _with_retries(lambda client: client.backend.generate(requests[i]), server)
            _compare(state, result, expected[i])
    except Exception as error:
        state.fault(f"a caller got {type(error).__name__}: {error}")


def _create_job(
    state: Soak,
    server: Callable[[], ApiServer],
    request: GenerationRequest,
    expected: GenerationResult,
    rng: random.Random,
) -> None:
    """Create a long-running generation, sometimes twice with one request id; then cancel it or get its result."""
    request_id = str(uuid.uuid4())
    with state.lock:
        state.expected[request_id] = expected

    def create(client: FoleyClient) -> str:
        return client.backend.create(request, request_id=request_id)

    name = _with_retries(create, server)
    if rng.random() < 0.3 and _with_retries(create, server) != name:
        state.fault(f"{request_id} was accepted twice")
    if rng.random() < 0.2:
        with state.lock:
            state.expected[request_id] = None
        _with_retries(lambda client: client.job(name).cancel(), server)
        state.count("cancelled, left")
        return
    _compare(state, _with_retries(lambda client: client.job(name).wait(), server), expected)


def _cancel(state: Soak, server: Callable[[], ApiServer], request: GenerationRequest, rng: random.Random) -> None:
    """Run a generation, and cancel it while it is in progress."""
    cancel = CancelToken()
    timer = threading.Timer(rng.uniform(0, 0.5), cancel.cancel)
    timer.start()
    endless = replace(request, options=GenerateOptions(text=request.options.text, steps=500))
    with suppress(Cancelled):
        _with_retries(lambda client: client.backend.generate(endless, cancel=cancel), server)
    state.count("cancelled")


_CRASHING = """
import sys
import numpy as np
from foley_client import FoleyClient
FoleyClient("grpc://" + sys.argv[1]).generate(envelope=np.full(100, 0.1, "f4"), steps=1000)
"""


def _crash(state: Soak, server: ApiServer, rng: random.Random) -> None:
    """Start a caller in a process, and kill it with SIGKILL."""
    process = subprocess.Popen([sys.executable, "-c", _CRASHING, server.grpc], stderr=subprocess.DEVNULL)
    time.sleep(rng.uniform(0.5, 2.0))
    process.kill()
    process.wait()
    state.count("crashed")


def _with_retries(call: Callable[[FoleyClient], Result], server: Callable[[], ApiServer]) -> Result:
    """Return the result of `call`, which is retried for up to `RETRY_TIMEOUT_S` seconds while servers restart."""
    until = time.monotonic() + RETRY_TIMEOUT_S
    while True:
        try:
            with server().client() as client:
                return call(client)
        except (Cancelled, InvalidInput, NotFound):
            raise
        except FoleyError as error:
            if time.monotonic() > until:
                raise
            time.sleep(error.retry_after_s or 0.2)


def _compare(state: Soak, result: GenerationResult, expected: GenerationResult) -> None:
    if _same(result, expected):
        state.count("right")
    else:
        state.fault("a sound differs from that of an undisturbed run")


def _kill_triton(state: Soak, server: ApiServer) -> None:
    """Kill Triton or the process of one of its models."""
    with suppress(Exception):  # the process may have ended already
        triton = server.triton()
        whole = state.random.random() < 0.5
        (triton if whole else state.random.choice(triton.children())).kill()
        state.outcome.kills["Triton" if whole else "a model's process"] += 1


def check_jobs(state: Soak, server: ApiServer) -> None:
    """Check that every long-running generation exists exactly once, with the expected sound or cancelled."""
    with server.client() as client:
        found = {one.request_id: one for one in client.jobs()}
        numbers = Counter(one.request_id for one in client.jobs())
        for request_id, expected in state.expected.items():
            if request_id not in found:
                state.fault(f"{request_id} is lost")
                continue
            if numbers[request_id] != 1:
                state.fault(f"{request_id} is there {numbers[request_id]} times")
            ended = found[request_id].state
            # one that its caller cancelled may have succeeded before
            if expected is None and ended not in ("cancelled", "succeeded"):
                state.fault(f"{request_id} was taken back and is {ended}")
            if expected and not _same(client.job(found[request_id].name).wait(), expected):
                state.fault(f"{request_id} has another sound")
