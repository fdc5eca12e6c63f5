"""Jobs in one process and in two, with a real store and real media files; only the networks are replaced."""

import asyncio
import sqlite3
import threading
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest

from foley.errors import Cancelled, MediaError, Overloaded, ServerFailure, ServerUnavailable
from foley.manifest import SamplingDefaults
from foley_pipeline.api import foley_pb2 as pb
from foley_pipeline.api.messages import request_to_proto, result_to_proto
from foley_pipeline.progress import Progress as StageProgress
from foley_pipeline.progress import Stage
from foley_pipeline.request import EnvelopeInput, GenerationRequest
from foley_pipeline.result import GenerationResult, Take
from foley_server.jobs import database_threads
from foley_server.jobs import store as stores
from foley_server.jobs import workers as module
from foley_server.jobs.database_threads import DatabaseThreads
from foley_server.jobs.jobs import Jobs, error_of
from foley_server.jobs.leases import Leases
from foley_server.jobs.media_store import MARKER, MediaStore
from foley_server.jobs.progress import ENVELOPE
from foley_server.jobs.store import Job, Quota, Store
from foley_server.jobs.upload import Uploads
from foley_server.jobs.watches import Watches
from foley_server.jobs.work import Result, Work
from foley_server.jobs.workers import MAX_ATTEMPTS, Workers
from foley_server.telemetry.metrics import Metrics

CURVE = np.full(100, 0.1, np.float32)
REQUEST = GenerationRequest(envelope=EnvelopeInput(CURVE, 16_000))
QUOTA = Quota(100, 100, 2**40, 2**40)
TIMEOUT_S = 30.0


@dataclass
class Networks:
    """Reports the envelope and one step, then returns a sound of `value` at once, or when `go` is set.

    Attributes:
        error: Error that it raises instead.
        go: Set when it may end.
        broken: Whether a failure is the Triton's.
        ready: Whether the Triton is available.
        started: Number of starts.
        stopped: Number of times that its work was cancelled.
    """

    value: float = 0.0
    error: Exception | None = None
    go: threading.Event = field(default_factory=threading.Event)
    broken: bool = False
    ready: bool = True
    started: int = 0
    stopped: int = 0

    def available(self) -> list[str]:
        return ["a"] if self.ready else []

    def any(self) -> SimpleNamespace:
        if not self.ready:
            raise ServerUnavailable("down")
        return SimpleNamespace(manifest=SimpleNamespace(sampling=SamplingDefaults()))

    def client(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(for_request=lambda *_: self.any())

    def failed(self, name: str, error: Exception) -> bool:
        return self.broken

    def run(self, _, progress, cancel) -> Result:
        self.started += 1
        progress(StageProgress(Stage.VIDEO2RMS, 1, 1, envelope=CURVE))
        progress(StageProgress(Stage.DENOISE, 0, 2))
        progress(StageProgress(Stage.DENOISE, 1, 2))
        while not self.go.wait(0.02):
            if cancel.cancelled:
                self.stopped += 1
                raise cancel.error
        if self.error:
            raise self.error
        sound = np.full(16_000, self.value, "<f4")
        result = GenerationResult(CURVE, [Take(sound, {"seed": 0})])
        return Result(
            result_to_proto("", result).SerializeToString(),
            {ENVELOPE: CURVE.astype("<f4").tobytes(), "take-0": sound.tobytes()},
        )


@dataclass
class Process:
    """What one API process has, without its servers."""

    jobs: Jobs
    workers: Workers
    watches: Watches
    store: Store
    networks: Networks

    async def create(self, **options) -> Job:
        message = request_to_proto(REQUEST)
        call = options.get("call", False)
        async with self.jobs.receive("alice", "generate", message, "", QUOTA, call=call) as upload:
            return await self.jobs.accept(upload, **options)

    async def ended(self, job: Job) -> Job:
        with self.jobs.watch(job) as progress:
            return await progress.wait()

    async def sound(self, job: Job) -> np.ndarray:
        return np.frombuffer(b"".join([chunk async for chunk in self.jobs.sound(job, 0)]), "<f4")


@pytest.fixture
def sqlite(tmp_path) -> str:
    return f"sqlite:///{tmp_path}/jobs.sqlite"


@pytest.fixture(autouse=True)
def _short_intervals(monkeypatch) -> None:
    monkeypatch.setattr("foley_server.jobs.leases.HEARTBEAT_S", 0.2)
    monkeypatch.setattr(stores, "LEASE_S", 2.0)
    monkeypatch.setattr(module, "REPORT_S", 0.1)
    monkeypatch.setattr("foley_server.jobs.jobs.SWEEP_INTERVAL_S", 0.1)
    monkeypatch.setattr(database_threads, "RETRY_AFTER_S", 0.05)


@pytest.fixture
def start(tmp_path, monkeypatch) -> Iterator[Callable[..., Process]]:
    """`async with start(url, networks) as process`: a process that runs until the context ends."""

    @asynccontextmanager
    async def run(url: str, networks: Networks | None = None, running: int = 1, works: bool = True):
        networks = networks or Networks()
        database, store = DatabaseThreads(8), Store(url)
        media, uploads = MediaStore(str(tmp_path / "media")), Uploads(tmp_path / "uploads", 2**20)
        uploads.root.mkdir(exist_ok=True)
        watches, leases = Watches(store, media, database), Leases(uuid.uuid4().hex, store, database)
        workers = Workers(
            leases, store, database, media, watches, networks, uploads, None, None, Metrics(), running, 60, 3600, 600
        )  # type: ignore[arg-type]
        jobs = Jobs(leases, store, database, media, watches, uploads, networks, 3600, 4, 200)  # type: ignore[arg-type]
        tasks = [
            asyncio.create_task(one.run()) for one in ((leases, watches, workers, jobs) if works else (leases, watches))
        ]
        try:
            yield Process(jobs, workers, watches, store, networks)
        finally:
            networks.go.set()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            database.close()
            store.close()

    def prepared(kind, request, folder) -> Work:
        return Work({}, lambda *_: 1, lambda _: 2, runner.get(request))

    # the work of a job is that of the process which runs it
    runner = SimpleNamespace(get=None)

    original = Workers._execute

    async def execute(self, run, request, client):
        runner.get = lambda _: self.tritons.run
        return await original(self, run, request, client)

    monkeypatch.setattr(Workers, "_execute", execute)
    monkeypatch.setattr(module, "prepare", prepared)
    return run


def run(scenario: Awaitable[None]) -> None:
    """Run `scenario` with a timeout."""
    asyncio.run(asyncio.wait_for(scenario, TIMEOUT_S))


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


def state(process: Process, job: Job) -> str | None:
    found = process.store.get([job.id])
    return found[job.id].state if found else None


def test_job_is_watched_from_another_process(start, store_url):
    """Position, stages, envelope and sound reach a process that does not run the job."""

    async def scenario() -> None:
        async with start(store_url) as runs, start(store_url, works=False) as watches:
            job = await watches.create()
            kinds = []

            async def follow() -> Job:
                with watches.jobs.watch(job) as progress:
                    async for event in progress.events():
                        kinds.append(event.progress.stage or event.WhichOneof("event"))
                        if event.progress.stage == "denoise":
                            runs.networks.go.set()
                    return await progress.wait()

            ended = await follow()
            assert ended.state == "succeeded"
            assert list(dict.fromkeys(kinds)) == ["accepted", "envelope_ready", "denoise"]
            assert (await watches.sound(ended)).tolist() == [0.0] * 16_000
            generation = watches.jobs.generation(ended)
            assert (generation.id, generation.takes[0].sample_count) == (job.id, 16_000)
            assert generation.expire_time.seconds

    run(scenario())


def test_watcher_in_the_same_process_sees_each_stage_once(start, sqlite):
    """Although the stages are read from the store, too, once the job has ended."""

    async def scenario() -> None:
        async with start(sqlite) as process:
            job = await process.create(call=True)
            kinds = []
            async with process.jobs.call(job) as progress:
                async for event in progress.events():
                    kinds.append(event.progress.stage or event.WhichOneof("event"))
                    process.networks.go.set()
            assert kinds.count("envelope_ready") == 1
            assert kinds[kinds.index("envelope_ready") :] == sorted(
                kinds[kinds.index("envelope_ready") :], key=["envelope_ready", "denoise"].index
            )

    run(scenario())


@pytest.mark.parametrize("watchers", [1, 8])
def test_watchers_see_the_end_whenever_they_come(start, sqlite, watchers):
    async def scenario() -> None:
        async with start(sqlite, Networks(go=_set())) as process:
            job = await process.create()
            early = [asyncio.create_task(process.ended(job)) for _ in range(watchers)]
            assert {(await one).state for one in early} == {"succeeded"}
            assert (await process.ended(job)).state == "succeeded"
            await until(lambda: not process.watches._watched)

    run(scenario())


def test_cancel_from_another_process_stops_work(start, store_url):
    async def scenario() -> None:
        async with start(store_url) as runs, start(store_url, works=False) as other:
            job = await other.create()
            await until(lambda: runs.networks.started == 1)
            await other.jobs.cancel(await other.jobs.find("alice", f"operations/{job.id}"))
            await until(lambda: runs.networks.stopped == 1 and runs.workers.active == 0)
            assert isinstance(error_of(await other.ended(job)), Cancelled)

    run(scenario())


@pytest.mark.parametrize("running", [True, False], ids=["running", "queued"])
def test_call_ends_with_its_caller(start, sqlite, tmp_path, running):
    """The work stops, and neither a row, a place nor a file is left."""

    async def scenario() -> None:
        async with start(sqlite, Networks(ready=True), running=1) as process:
            blocker = None if running else await process.create()
            started = 1
            await until(lambda: running or process.networks.started == started)

            async def caller() -> None:
                job = await process.create(call=True)
                async with process.jobs.call(job) as progress:
                    await progress.wait()

            calling = asyncio.create_task(caller())
            await until(lambda: process.jobs.calls == 1 and (not running or process.networks.started == 1))
            calling.cancel()
            await asyncio.wait([calling])
            assert process.jobs.calls == 0
            await until(lambda: not running or process.networks.stopped == 1)
            kept = {MARKER, *([blocker.id] if blocker else [])}
            await until(lambda: {path.name for path in (tmp_path / "media").iterdir()} <= kept)
            await until(lambda: process.store.snapshot()["queued"] == 0)

    run(scenario())


def test_calls_of_an_ended_process_are_removed(start, sqlite, monkeypatch):
    async def scenario() -> None:
        async with start(sqlite) as other:
            async with start(sqlite, works=False) as killed:
                job = await killed.create(call=True)
            await until(lambda: other.networks.started == 1)
            await until(lambda: other.networks.stopped == 1)
            await until(lambda: other.store.get([job.id]) == {})

    run(scenario())


def test_process_that_hangs_beyond_its_lease_loses_its_claim(start, sqlite, monkeypatch):
    """The result is that of the process that took over, whenever the other one writes its own."""

    async def scenario() -> None:
        async with start(sqlite, Networks(value=0.25)) as hangs:
            job = await hangs.create()
            await until(lambda: hangs.networks.started == 1)
            hangs.store.heartbeat = lambda holder, ids: set(hangs.workers._runs)  # nothing is extended
            async with start(sqlite, Networks(value=0.5, go=_set())) as takes:
                ended = await takes.ended(job)
                assert (ended.state, ended.attempts, ended.starts) == ("succeeded", 1, 2)
                hangs.networks.go.set()
                await until(lambda: hangs.workers.active == 0)
                assert (await takes.sound(ended))[0] == 0.5
                assert state(takes, job) == "succeeded"

    run(scenario())


@pytest.mark.parametrize("outcome", ["succeeded", "failed"])
def test_outcome_is_stored_after_write_failures(start, sqlite, tmp_path, outcome):
    """The table is away for a moment: no statement succeeds, as on a full disk."""

    async def scenario() -> None:
        async with start(sqlite, Networks(error=MediaError("no") if outcome == "failed" else None)) as process:
            job = await process.create()
            await until(lambda: process.networks.started == 1)
            with sqlite3.connect(tmp_path / "jobs.sqlite") as other:
                other.execute("ALTER TABLE jobs RENAME TO away")
            process.networks.go.set()
            await asyncio.sleep(0.5)
            with sqlite3.connect(tmp_path / "jobs.sqlite") as other:
                other.execute("ALTER TABLE away RENAME TO jobs")
            assert (await process.ended(job)).state == outcome
            assert process.networks.started == 1

    run(scenario())


def test_broken_triton_does_not_burn_the_queue(start, sqlite):
    """While every request fails because of Triton, jobs go back; once it works, all succeed."""

    async def scenario() -> None:
        networks = Networks(error=ServerFailure("CUDA error"), broken=True, go=_set())
        async with start(sqlite, networks) as process:
            jobs = [await process.create() for _ in range(3)]
            await until(lambda: networks.started >= 3)
            networks.ready = False  # the breaker is open
            await until(lambda: process.workers.active == 0)
            assert {state(process, job) for job in jobs} == {"queued"}
            networks.error, networks.ready = None, True
            assert {(await process.ended(job)).state for job in jobs} == {"succeeded"}

    run(scenario())


@pytest.mark.parametrize(
    ("error", "final"),
    [
        (ServerFailure("a fault of the request"), "failed"),
        (MediaError("no"), "failed"),
        (RuntimeError("a bug"), "failed"),
        (Overloaded("all decoders are busy"), None),
        (ServerUnavailable("Triton died"), None),
    ],
)
def test_only_final_errors_end_a_job(start, sqlite, error, final):
    async def scenario() -> None:
        async with start(sqlite, Networks(error=error, go=_set())) as process:
            job = await process.create()
            await until(lambda: process.networks.started == 1 and process.workers.active == 0)
            if final:
                assert (await process.ended(job)).state == final
                return
            assert state(process, job) == "queued"
            process.networks.error = None
            assert (await process.ended(job)).state == "succeeded"

    run(scenario())


def test_job_that_kills_triton_fails_in_the_end(start, sqlite):
    async def scenario() -> None:
        async with start(sqlite, Networks(error=ServerUnavailable("Triton died"), go=_set())) as process:
            process.networks.error.retry_after_s = 0.01
            ended = await process.ended(await process.create())
            assert ended.state == "failed"
            assert f"{MAX_ATTEMPTS} times" in str(error_of(ended))
            assert process.networks.started == MAX_ATTEMPTS

    run(scenario())


@pytest.mark.parametrize("idle", ["no Triton", "draining", "nothing to do"])
def test_idle_workers_do_not_spin(start, sqlite, idle):
    async def scenario() -> None:
        async with start(sqlite, Networks(ready=idle != "no Triton")) as process:
            process.workers.draining = idle == "draining"
            if idle != "nothing to do":
                await process.create()
            asked: Counter[str] = Counter()
            available = process.networks.available

            def counted() -> list[str]:
                asked["claims"] += 1
                return available()

            process.networks.available = counted
            await asyncio.sleep(1.0)
            assert asked["claims"] < 30
            assert process.networks.started == 0

    run(scenario())


def test_places_are_limited_and_free_once_jobs_end(start, sqlite):
    async def scenario() -> None:
        async with start(sqlite) as process:
            jobs = [await process.create(call=True) for _ in range(4)]
            with pytest.raises(Overloaded) as error:
                await process.create(call=True)
            assert error.value.retry_after_s
            await process.create()  # a long-running generation needs no place

            async def wait(job: Job) -> None:
                async with process.jobs.call(job) as progress:
                    assert (await progress.wait()).state == "succeeded"
                    await asyncio.sleep(0.05)
                    assert process.jobs.calls < 4  # before the result is delivered

            waiting = [asyncio.create_task(wait(job)) for job in jobs]
            await asyncio.sleep(0)
            process.networks.go.set()
            await asyncio.gather(*waiting)
            assert process.jobs.calls == 0

    run(scenario())


def test_stopping_process_puts_its_jobs_back(start, sqlite):
    async def scenario() -> None:
        async with start(sqlite) as process:
            job = await process.create()
            await until(lambda: process.networks.started == 1)
        async with start(sqlite, works=False) as other:
            found = other.store.get([job.id])[job.id]
            assert (found.state, found.attempts) == ("queued", 0)

    run(scenario())


def test_unknown_fields_are_not_stored(start, sqlite):
    async def scenario() -> None:
        async with start(sqlite, works=False) as process:
            message = pb.GenerateOptions.FromString(
                request_to_proto(REQUEST).SerializeToString() + b"\xfa\x7f\x80\x08" + bytes(1024)
            )
            assert message.ByteSize() > 1024
            async with process.jobs.receive("alice", "generate", message, "", QUOTA, call=False) as upload:
                assert len(upload.request) < 1024

    run(scenario())


def test_only_media_of_jobs_are_removed(start, sqlite, tmp_path):
    """Folders of others, in the form of ids too, stay; also after this service's store was lost."""
    unrelated = {"photos/one.jpg": b"1", f"{uuid.uuid4().hex}/video": b"2", "backups/deep/er": b"4"}
    for name, content in unrelated.items():
        (tmp_path / "media" / name).parent.mkdir(parents=True)
        (tmp_path / "media" / name).write_bytes(content)

    async def scenario() -> None:
        async with start(sqlite, Networks(go=_set())) as process:
            ended = await process.ended(await process.create())
            await process.jobs.delete(ended)
            await until(lambda: not (tmp_path / "media" / ended.id).exists())

    run(scenario())
    assert {name: (tmp_path / "media" / name).read_bytes() for name in unrelated} == unrelated


def _set() -> threading.Event:
    event = threading.Event()
    event.set()
    return event


def test_full_disk_refuses_uploads_early(start, sqlite):
    async def scenario() -> None:
        async with start(sqlite, works=False) as process:
            process.jobs.uploads = Uploads(process.jobs.uploads.root, 2**20, reserve_bytes=2**60)
            with pytest.raises(Overloaded, match="disk is nearly full"):
                await process.create()
            assert process.store.snapshot()["queued"] == 0

    run(scenario())
