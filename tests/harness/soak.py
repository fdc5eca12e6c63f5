"""Soak test of a cluster: many concurrent generations while callers cancel and crash and processes are killed.

At the end, every generation whose creation was acknowledged exists exactly once, with the sound of an undisturbed run,
or was cancelled by its caller; every API gives the same answers; and nothing is left behind.
"""

import random
import statistics
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from foley.errors import Cancelled, FoleyError, InvalidInput, NotFound
from foley.options import GenerateOptions
from foley_bench.small_video import write_small_video
from foley_client import CancelToken, FoleyClient, GenerationResult
from foley_pipeline.request import EnvelopeInput, GenerationRequest
from harness import leaks
from harness.cluster import Cluster, StoreKind, cluster, leftovers
from harness.faults import Fault, Faults
from harness.verdict import Ledger, check_jobs, check_removal

Result = TypeVar("Result")

CALLERS = 8
CALL_TIMEOUT_S = 150.0  # of one attempt; longer than an API hangs
RETRY_TIMEOUT_S = 300.0  # for which a caller retries
JOB_SHARE, CANCEL_SHARE, CRASH_SHARE = 0.6, 0.1, 0.03  # the others are calls that wait for their sound
TWICE_SHARE, TAKE_BACK_SHARE, LEAVE_SHARE = 0.3, 0.15, 0.15  # of long-running generations
GENERATIONS_A_FAULT = 20
RELAPSE_SHARE = 0.25  # of faults injected before the cluster has recovered; more would amount to one long outage
PROGRESS_S = 15.0
WITHOUT_API_DEATHS: Sequence[Fault] = ("Triton", "model", "Postgres", "Triton", "model", "hanging API")
WITH_API_DEATHS: Sequence[Fault] = ("API", "Triton", "API", "Postgres", "API", "model", "hanging API")

Plan = tuple[Sequence[Fault], Sequence[Fault]]


@dataclass
class Outcome:
    """Result of a soak.

    Attributes:
        ended: Number of generations by how they ended.
        kills: Number of faults by kind.
        retries: Number of retries of the callers by error.
        seconds: Durations of the successful calls by kind.
        faults: One sentence for each violated guarantee.
        elapsed_s: Duration of the soak.
    """

    ended: Counter[str]
    kills: Counter[str]
    retries: Counter[str]
    seconds: dict[str, list[float]]
    faults: list[str]
    elapsed_s: float

    def table(self) -> str:
        """Return the numbers as a table."""
        rows = [("generations", self.ended), ("faults", self.kills), ("retries of callers after", self.retries)]
        lines = [f"{self.elapsed_s:.0f} s"]
        for title, counts in rows:
            lines.append(f"{title}: " + ", ".join(f"{number} {name}" for name, number in counts.most_common()))
        for kind, seconds in self.seconds.items():
            median, p95 = statistics.median(seconds), float(np.percentile(seconds, 95))
            lines.append(
                f"{kind}: {len(seconds)}, median {median:.2f} s, p95 {p95:.2f} s, longest {max(seconds):.2f} s"
            )
        return "\n".join(lines)


@dataclass
class Soak:
    """State shared by the callers.

    Attributes:
        cluster: The cluster.
        ledger: What the callers were told.
        requests: Different requests.
        expected: The sound of each request in an undisturbed run.
    """

    cluster: Cluster
    ledger: Ledger
    requests: list[GenerationRequest]
    expected: list[GenerationResult] = field(default_factory=list)


def soak(
    bundle: Path,
    folder: Path,
    store: StoreKind,
    count: int,
    seed: int,
    report: Callable[[str], None],
    plan: Plan | None = None,
) -> Outcome:
    """Run many generations while callers crash and processes are killed.

    In the first half, no API is killed: they must not leak. In the second half, they are killed, too.

    Args:
        bundle: Folder of a small bundle.
        folder: An empty folder, for data, logs and videos.
        store: The store of the cluster.
        count: Number of generations.
        seed: Seed of the requests and of the faults.
        report: Called with progress messages.
        plan: Faults of each half, in their order; by default one for every `GENERATIONS_A_FAULT` generations.
    """
    began, rng = time.monotonic(), random.Random(seed)
    ledger = Ledger(lambda line: report(f"{time.monotonic() - began:4.0f} s  {line}"))
    halves = plan or tuple(_plan(kinds, count // 2, store, rng) for kinds in (WITHOUT_API_DEATHS, WITH_API_DEATHS))
    with leftovers(ledger.fault), cluster(bundle, folder, store) as running:
        state = Soak(running, ledger, _requests(folder))
        with running.apis[0].client() as client:
            state.expected = [client.backend.generate(one) for one in state.requests]
        faults = Faults(running, rng, ledger.report)
        warm_up = 2 * CALLERS  # also fills the pools of connections before the snapshot
        _phase(state, faults, (), warm_up, rng)
        before = [leaks.settled(api.server, in_cluster=True) for api in running.apis]
        _phase(state, faults, halves[0], count // 2 - warm_up, rng)
        for i, api in enumerate(running.apis):
            after = leaks.settled(api.server, before[i], in_cluster=True)
            for leak in leaks.leaks(before[i], after, in_cluster=True):
                ledger.fault(f"API {i} leaks {leak}")
        _phase(state, faults, halves[1], count - count // 2, rng)
        ledger.report("all callers have ended")
        addresses = [api.server.grpc for api in running.apis]
        check_jobs(ledger, addresses)
        check_removal(ledger, addresses, running.rows, running.media_files)
        codes = [part.stop() for part in running.apis] + [part.stop() for part in running.tritons]
        if any(codes):
            ledger.fault(f"processes ended with the exit codes {codes}")
        for left in _left_on_disk(running):
            ledger.fault(f"{left} is left")
    return Outcome(ledger.ended, faults.kills, ledger.retries, ledger.seconds, ledger.faults, time.monotonic() - began)


def _plan(kinds: Sequence[Fault], count: int, store: StoreKind, rng: random.Random) -> list[Fault]:
    usable = [kind for kind in kinds if store == "postgres" or kind != "Postgres"]
    plan = [usable[i % len(usable)] for i in range(max(len(usable), count // GENERATIONS_A_FAULT))]
    rng.shuffle(plan)
    return plan


def _left_on_disk(running: Cluster) -> Iterable[Path]:
    """Return the files of requests, and of Tritons, that remain although all processes have ended."""
    yield from running.scratch.iterdir()
    for api in running.apis:
        yield from (api.folder / "data").glob("uploads-*")
    for triton in running.tritons:
        yield from triton.shared_memory()


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


def _phase(state: Soak, faults: Faults, plan: Sequence[Fault], count: int, rng: random.Random) -> None:
    """Run `count` generations, `CALLERS` at a time, with the faults of `plan` at random moments between them.

    Faults are tied to the number of generations: with a fixed rate, a slow machine would complete nothing between two.
    """
    moments = sorted(rng.randrange(count) for _ in plan)
    ended, done = threading.Semaphore(0), Counter[str]()
    over, interrupted = threading.Event(), threading.Event()

    def disturb() -> None:
        number = 0
        try:
            for moment, fault in zip(moments, plan, strict=True):
                while number < moment:
                    ended.acquire()
                    number += 1
                if interrupted.is_set():
                    break
                if rng.random() > RELAPSE_SHARE:
                    faults.recover()
                time.sleep(rng.uniform(0, 1))
                faults.inject(fault)
            faults.recover()
        except Exception as error:
            state.ledger.fault(f"the cluster does not recover: {type(error).__name__}: {error}")

    def call(seed: int) -> None:
        try:
            _one(state, random.Random(seed))
        except Exception as error:
            state.ledger.fault(f"a caller got {type(error).__name__}: {error}")
        done["generations"] += 1
        ended.release()

    def tell() -> None:
        while not over.wait(PROGRESS_S):
            state.ledger.report(f"{done['generations']} of {count} generations")

    threads = [threading.Thread(target=one) for one in (disturb, tell)]
    for thread in threads:
        thread.start()
    try:
        seeds = [rng.randrange(2**32) for _ in range(count)]
        with ThreadPoolExecutor(CALLERS) as pool:
            try:
                list(pool.map(call, seeds))
            except BaseException:  # interrupted by the user
                interrupted.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    finally:
        over.set()
        for _ in range(count):
            ended.release()
        for thread in threads:
            thread.join()


def _one(state: Soak, rng: random.Random) -> None:
    """Run one generation in a randomly chosen way."""
    i = rng.randrange(len(state.requests))
    request, expected, way = state.requests[i], state.expected[i], rng.random()
    if way < JOB_SHARE:
        _create_job(state, request, expected, rng)
    elif way < JOB_SHARE + CANCEL_SHARE:
        _cancel(state, request, rng)
    elif way < JOB_SHARE + CANCEL_SHARE + CRASH_SHARE:
        _crash(state, rng)
    else:
        began = time.monotonic()
        result = _with_retries(state, rng, lambda client, cancel: client.backend.generate(request, cancel=cancel))
        state.ledger.count("generated", "generate", time.monotonic() - began)
        state.ledger.check_sound(result, expected)


def _create_job(state: Soak, request: GenerationRequest, expected: GenerationResult, rng: random.Random) -> None:
    """Create a long-running generation, sometimes twice with one request id; then cancel it, leave it, or wait."""
    ledger, request_id, began = state.ledger, str(uuid.UUID(int=rng.getrandbits(128), version=4)), time.monotonic()

    def create(client: FoleyClient, cancel: CancelToken) -> str:
        return client.backend.create(request, request_id=request_id, cancel=cancel)

    def status(client: FoleyClient, _: CancelToken) -> str:
        return client.job(name).status.state

    name = _with_retries(state, rng, create)
    ledger.accept(request_id, name, expected)
    if rng.random() < TWICE_SHARE:
        ledger.accept(request_id, _with_retries(state, rng, create), expected)
    way = rng.random()
    if way < TAKE_BACK_SHARE:
        time.sleep(rng.uniform(0, 0.5))
        ledger.take_back(request_id)
        _with_retries(state, rng, lambda client, _: client.job(name).cancel())
        ledger.see(request_id, _with_retries(state, rng, status))
        ledger.count("created and cancelled")
    elif way < TAKE_BACK_SHARE + LEAVE_SHARE:
        ledger.count("created and left")
    else:
        result = _with_retries(state, rng, lambda client, cancel: client.backend.wait(name, cancel=cancel))
        ledger.count("created and awaited", "create and wait", time.monotonic() - began)
        ledger.see(request_id, "succeeded", result)
        ledger.see(request_id, _with_retries(state, rng, status))


def _cancel(state: Soak, request: GenerationRequest, rng: random.Random) -> None:
    """Run a generation, and cancel it while it is in progress."""
    until = time.monotonic() + rng.uniform(0, 1.0)
    endless = replace(request, options=GenerateOptions(text=request.options.text, steps=500))

    def call(client: FoleyClient, cancel: CancelToken) -> GenerationResult:
        timer = threading.Timer(max(0, until - time.monotonic()), cancel.cancel)
        timer.start()
        return client.backend.generate(endless, cancel=cancel)

    with suppress(Cancelled):
        _with_retries(state, rng, call)
    state.ledger.count("cancelled")


_CRASHING = """
import sys
import numpy as np
from foley_client import FoleyClient
FoleyClient("grpc://" + sys.argv[1]).generate(envelope=np.full(100, 0.1, "f4"), steps=1000)
"""


def _crash(state: Soak, rng: random.Random) -> None:
    """Start a caller in a process, and kill it with SIGKILL."""
    server = f"127.0.0.1:{rng.choice(state.cluster.apis).port}"
    process = subprocess.Popen([sys.executable, "-c", _CRASHING, server], stderr=subprocess.DEVNULL)
    time.sleep(rng.uniform(0.5, 3.0))
    process.kill()
    process.wait()
    state.ledger.count("crashed")


def _with_retries(state: Soak, rng: random.Random, call: Callable[[FoleyClient, CancelToken], Result]) -> Result:
    """Return the result of `call`, made to any API, and repeated for up to `RETRY_TIMEOUT_S` seconds."""
    until = time.monotonic() + RETRY_TIMEOUT_S
    while True:
        try:
            with rng.choice(state.cluster.apis).client() as client, CancelToken().child(CALL_TIMEOUT_S) as token:
                return call(client, token)
        except (Cancelled, InvalidInput, NotFound):
            raise
        except FoleyError as error:
            state.ledger.retry(error)
            if time.monotonic() > until:
                raise
            time.sleep(min(error.retry_after_s or 0.2, 5.0))
