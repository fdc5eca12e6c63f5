"""Long-running generations with a real store and real media files; only the networks are replaced."""

import asyncio
import sqlite3
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from foley.errors import FoleyError, MediaError
from foley_pipeline.api.messages import request_to_proto
from foley_pipeline.request import EnvelopeInput, GenerationRequest
from foley_pipeline.result import GenerationResult, Take
from foley_server.jobs import generations as module
from foley_server.jobs.generations import Generations
from foley_server.jobs.media_store import MediaStore
from foley_server.jobs.store import Store
from foley_server.jobs.upload import Uploads

ENVELOPE = np.full(100, 0.1, np.float32)
REQUEST = GenerationRequest(envelope=EnvelopeInput(ENVELOPE, 16_000))
TIMEOUT_S = 20.0


@dataclass
class Networks:
    """Returns a sound at once, or when `go` is set; or raises `error`."""

    ready: bool = True
    draining: bool = False
    error: FoleyError | None = None
    go: asyncio.Event | None = None
    began: int = 0
    stopped: int = 0
    supervisor: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(ready=True))

    async def generate(self, progress, request) -> GenerationResult:
        self.began += 1
        try:
            if self.go:
                await self.go.wait()
        except asyncio.CancelledError:
            self.stopped += 1
            raise
        if self.error:
            raise self.error
        return GenerationResult(ENVELOPE, [Take(np.zeros(16_000, np.float32), {"seed": 0})])


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Generations]]:
    """`make(engine, store)`: generations in folders that persist within a test, as across a restart."""
    (tmp_path / "uploads").mkdir(exist_ok=True)
    made: list[Generations] = []

    def build(engine: Networks | None = None, store: Store | None = None, workers: int = 1) -> Generations:
        generations = Generations(
            store or Store(tmp_path / "store.sqlite"),
            MediaStore(str(tmp_path / "media")),
            engine or Networks(),
            Uploads(tmp_path / "uploads", 2**20),
            workers,
            100,
            3600.0,
        )
        made.append(generations)
        return generations

    yield build
    for generations in made:
        generations.store.close()


async def add(generations: Generations, file: Path | None = None):
    return await generations.add(
        "alice", str(uuid.uuid4()), "digest", request_to_proto(REQUEST), [file] if file else []
    )


async def wait_until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


def run(scenario: Awaitable[None]) -> None:
    """Run `scenario` with a timeout."""
    asyncio.run(asyncio.wait_for(scenario, TIMEOUT_S))


async def stop(task: "asyncio.Task[None]") -> None:
    task.cancel()
    await asyncio.wait([task])


def test_sweep_keeps_files_of_others(make, tmp_path, monkeypatch):
    """Unrelated folders, generations of a replica, and those of a store whose file was lost."""
    monkeypatch.setattr(module, "SWEEP_INTERVAL_S", 0.05)
    unrelated = {
        "photos/one.jpg": b"1",
        f"{uuid.uuid4().hex}/video": b"2",
        f"{uuid.uuid4()}/video": b"3",
        "backups/deep/er": b"4",
    }
    for name, content in unrelated.items():
        (tmp_path / "media" / name).parent.mkdir(parents=True)
        (tmp_path / "media" / name).write_bytes(content)

    async def scenario() -> None:
        generations = make()
        work = asyncio.create_task(generations.run())
        row = await add(generations)
        await wait_until(lambda: generations.store.by_id(row.id).ended)
        await generations.delete(generations.store.by_id(row.id))
        await asyncio.sleep(0.3)  # several sweeps
        await stop(work)
        assert not (tmp_path / "media" / row.id).exists()

    run(scenario())
    assert {name: (tmp_path / "media" / name).read_bytes() for name in unrelated} == unrelated


def test_sweep_removes_only_unaccepted_uploads(make, tmp_path, monkeypatch):
    """A process killed between upload and acceptance, and acceptances during the sweep."""
    monkeypatch.setattr(module, "SWEEP_INTERVAL_S", 0.0)
    file = tmp_path / "video"
    file.write_bytes(b"video")
    killed = make()
    killed.store.reserve("a" * 32)
    killed.media.put("a" * 32, "video", file)
    killed.store.close()

    async def scenario() -> None:
        generations = make(Networks(supervisor=SimpleNamespace(ready=False)))
        sweep = asyncio.create_task(generations._sweep())
        rows = await asyncio.gather(*(add(generations, file) for _ in range(50)))
        await wait_until(lambda: not generations.store.reserved())
        await stop(sweep)
        kept = {path.name for path in (tmp_path / "media").iterdir()}
        assert kept == {row.id for row in rows}

    run(scenario())


def test_concurrent_uploads_with_one_request_id_keep_one(make, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SWEEP_INTERVAL_S", 0.02)
    file = tmp_path / "video"
    file.write_bytes(b"video")

    async def scenario() -> None:
        generations = make(Networks(supervisor=SimpleNamespace(ready=False)))
        request_id = str(uuid.uuid4())
        sweep = asyncio.create_task(generations._sweep())
        both = await asyncio.gather(
            *(generations.add("alice", request_id, "digest", request_to_proto(REQUEST), [file]) for _ in range(2))
        )
        assert both[0].id == both[1].id
        await wait_until(lambda: not generations.store.reserved())
        await stop(sweep)
        assert [path.name for path in (tmp_path / "media").iterdir()] == [both[0].id]

    run(scenario())


class Paused(Store):
    """Delays `by_id` and `count_ahead`, as a slow disk does, while `hold` is set."""

    hold = False

    def by_id(self, id):
        return self._slow(super().by_id, id)

    def count_ahead(self, number):
        return self._slow(super().count_ahead, number)

    def _slow(self, function, argument):
        found = function(argument)
        if self.hold:
            time.sleep(0.2)
        return found


@pytest.mark.parametrize("watchers", [1, 8])
def test_watcher_before_claim_sees_the_end(make, tmp_path, watchers):
    """`create` followed by `wait`, as the clients do; the watcher arrives before the worker claims the row."""

    async def scenario() -> None:
        store = Paused(tmp_path / "store.sqlite")
        generations = make(store=store)
        row = await add(generations)
        store.hold = True
        watching = [asyncio.create_task(generations.progress(row)) for _ in range(watchers)]
        await asyncio.sleep(0)
        work = asyncio.create_task(generations.run())

        async def follow(progress_of: "asyncio.Task") -> None:
            async for _ in (await progress_of).events():
                pass

        await asyncio.gather(*map(follow, watching))
        await wait_until(lambda: not generations._live)
        await stop(work)

    run(scenario())


def test_cancel_stops_watched_work(make, tmp_path):
    async def scenario() -> None:
        store = Paused(tmp_path / "store.sqlite")
        engine = Networks(go=asyncio.Event())
        generations = make(engine, store)
        row = await add(generations)
        store.hold = True
        watching = asyncio.create_task(generations.progress(row))
        await asyncio.sleep(0)
        work = asyncio.create_task(generations.run())
        progress = await watching
        await wait_until(lambda: engine.began > 0)
        await generations.cancel(await generations.find("alice", f"operations/{row.id}"))
        assert progress.ended
        await wait_until(lambda: engine.stopped == engine.began)
        await wait_until(lambda: not generations._live)
        await stop(work)

    run(scenario())


@pytest.mark.parametrize("state", ["triton unavailable", "draining"])
def test_idle_workers_do_not_spin(make, state):
    """An accepted generation must not make the workers spin: other tasks run, and cancellation ends the loop."""

    async def scenario() -> None:
        engine = Networks(draining=state == "draining", supervisor=SimpleNamespace(ready=state != "triton unavailable"))
        generations = make(engine, workers=2)
        work = asyncio.create_task(generations.run())
        await asyncio.sleep(0.05)
        await add(generations)
        rounds = 0
        clear = generations._wakeup.clear

        def counted() -> None:
            nonlocal rounds
            rounds += 1
            clear()

        generations._wakeup.clear = counted
        await asyncio.sleep(0.5)
        assert rounds < 20
        await stop(work)
        assert engine.began == 0

    run(scenario())


@pytest.mark.parametrize("outcome", ["succeeded", "failed"])
def test_outcome_is_stored_after_write_failures(make, tmp_path, monkeypatch, outcome):
    """A trigger of SQLite rejects every update, as a full disk does."""
    monkeypatch.setattr(module, "STORE_RETRY_S", 0.05)

    async def scenario() -> None:
        engine = Networks(go=asyncio.Event(), error=MediaError("no") if outcome == "failed" else None)
        generations = make(engine)
        row = await add(generations)
        work = asyncio.create_task(generations.run())
        await wait_until(lambda: engine.began > 0)
        with sqlite3.connect(tmp_path / "store.sqlite") as other:
            other.execute("CREATE TRIGGER full BEFORE UPDATE ON generations BEGIN SELECT RAISE(ABORT, 'full'); END")
        engine.go.set()
        await asyncio.sleep(0.3)
        assert generations.store.by_id(row.id).state == "running"
        with sqlite3.connect(tmp_path / "store.sqlite") as other:
            other.execute("DROP TRIGGER full")
        await wait_until(lambda: generations.store.by_id(row.id).ended)
        assert generations.store.by_id(row.id).state == outcome
        assert engine.began == 1
        await stop(work)

    run(scenario())
