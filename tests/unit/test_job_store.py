"""The store of jobs, on SQLite and on a real Postgres, shared by several processes, also after crashes."""

import asyncio
import os
import random
import sqlite3
import subprocess
import sys
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import takewhile
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import func, select, text

from foley.errors import (
    AlreadyExists,
    DatabaseUnavailable,
    FoleyError,
    OutputError,
    Overloaded,
    RateLimited,
    SettingError,
)
from foley_server.jobs import database
from foley_server.jobs import store as module
from foley_server.jobs.changes import changes
from foley_server.jobs.schema import jobs, metadata
from foley_server.jobs.store import MAX_TICK_S, SUSPECT_ATTEMPTS, Job, Quota, Store, new_id
from foley_server.jobs.workers import MAX_ATTEMPTS

QUOTA = Quota(1000, 1000, 2**40, 2**40)
DAY_S = 86_400.0
Make = Callable[[], Store]


@pytest.fixture
def make(store_url) -> Iterator[Make]:
    """`make()`: the store, as opened by one more process."""
    made: list[Store] = []

    def build() -> Store:
        made.append(Store(store_url))
        return made[-1]

    yield build
    for store in made:
        store.close()


@pytest.fixture
def store(make) -> Store:
    return make()


def add(
    store: Store,
    owner: str = "alice",
    cost: int = 1,
    size: int = 0,
    quota: Quota = QUOTA,
    request: bytes = b"",
    **options,
) -> Job:
    id = new_id()
    store.receive(id, owner, "generate", "receiver")
    try:
        return store.accept(id, request, cost, size, quota, **options)
    except FoleyError:
        store.abandon(id)
        raise


def claim(store: Store, holder: str = "one", tritons: tuple[str, ...] = ("a",)) -> Job | None:
    claimed = store.claim(holder, tritons)
    return claimed[0] if claimed else None


def claims(store: Store, **options) -> list[Job]:
    return list(takewhile(lambda job: job is not None, iter(lambda: claim(store, **options), 0)))  # type: ignore[arg-type]


def state(store: Store, job: Job) -> str | None:
    found = store.get([job.id])
    return found[job.id].state if found else None


def pass_time(store: Store, seconds: float) -> None:
    """Move the database's clock, as `store` sees it."""
    store._now = store._now + seconds


def lapse(store: Store) -> list[str]:
    """Let all leases lapse while sweeps go on, and return what they found."""
    found = []
    for _ in range(3):
        pass_time(store, 0.4 * module.LEASE_S)
        found += store.sweep()
    return found


def end(store: Store, job: Job, result: bytes = b"result") -> bool:
    return store.end(job, "succeeded", result, "[]", 0, DAY_S)


def test_schema_is_what_the_migrations_make(store):
    with store.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_request_id_is_unique_per_owner(store):
    first = add(store, "alice", request_id="r", digest="d")
    assert add(store, "alice", request_id="r", digest="d").id == first.id
    assert add(store, "bob", request_id="r").id != first.id
    assert store.find_request("alice", "r").id == first.id
    assert store.find("bob", first.id) is None
    assert {job.id for job in store.page("alice", 2**62, 10)} == {first.id}
    assert len(store.sweep()) == 1  # the second upload of alice's request


def test_concurrent_requests_with_one_id_make_one_job(make):
    stores = [make() for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        jobs = list(pool.map(lambda store: add(store, request_id="r"), stores))
    assert len({job.id for job in jobs}) == 1
    assert stores[0].snapshot()["queued"] == 1


def test_processes_claim_each_job_once(make):
    stores = [make() for _ in range(3)]
    added = {add(stores[0]).id for _ in range(60)}
    with ThreadPoolExecutor(6) as pool:
        claimed = [job.id for jobs in pool.map(claims, stores * 2) for job in jobs]
    assert Counter(claimed) == Counter(added)


def test_jobs_of_one_owner_run_in_order_of_acceptance(store):
    added = [add(store) for _ in range(5)]
    assert store.positions([job.id for job in added]) == {job.id: i for i, job in enumerate(added, 1)}
    assert [job.id for job in claims(store)] == [job.id for job in added]


@pytest.mark.parametrize("cost", [1, 50])
def test_share_of_owners_is_equal_in_rows(store, cost):
    """A hundred jobs of alice delay those of bob by his own share only, whatever one of hers costs."""
    for _ in range(100):
        add(store, "alice", cost)
    for _ in range(5):
        add(store, "bob", 10)
    order = claims(store)
    last = max(i for i, job in enumerate(order) if job.owner == "bob")
    rows = Counter({"alice": 0, "bob": 0})
    for job in order[: last + 1]:
        rows[job.owner] += job.cost
    assert abs(rows["alice"] - rows["bob"]) <= max(cost, 10)


def test_idle_time_earns_no_priority(store):
    for _ in range(50):
        add(store, "alice", 10)
    assert len(claims(store)) == 50
    for _ in range(20):
        add(store, "bob", 10)
        add(store, "alice", 10)
    first = Counter(job.owner for job in claims(store)[:20])
    assert abs(first["alice"] - first["bob"]) <= 2


def test_calls_go_to_the_triton_with_the_least_to_do(store):
    for cost in (100, 10, 10, 10, 10):
        add(store, cost=cost)
    assert [job.triton for job in claims(store, tritons=("a", "b"))] == ["a", "b", "b", "b", "b"]


def test_claim_is_lost_with_the_lease(make):
    """A process that hangs beyond its lease changes nothing when it wakes up."""
    store, other = make(), make()
    job = add(store)
    hung = claim(store, "hung")
    assert claim(other) is None
    lapse(other)
    taken = claim(other, "other")
    assert (taken.id, taken.starts, taken.attempts) == (job.id, 2, 1)
    assert store.heartbeat("hung", [job.id]) == set()
    assert not end(store, hung, b"of the process that hung")
    store.report(hung, '[["denoise", 1, 1]]')
    store.requeue(hung, True)
    assert store.get([job.id])[job.id].progress is None
    assert end(other, taken, b"right")
    assert end(other, taken, b"again")  # its answer was lost: the same outcome, which does not change
    assert not other.end(taken, "failed", b"other", "[]", 0, DAY_S)
    assert store.find("alice", job.id).result == b"right"


def test_heartbeat_keeps_claims(make):
    store, other = make(), make()
    job = add(store)
    forgotten = add(store)  # the answer to its claim was lost
    claimed = claim(store)
    assert claim(store).id == forgotten.id
    for _ in range(10):
        pass_time(other, 0.2 * module.LEASE_S)
        store._now = other._now
        assert (job.id, claimed.starts) in store.heartbeat("one", [job.id])
        other.sweep()
    assert (state(other, job), state(other, forgotten)) == ("running", "queued")


def test_outage_of_the_database_costs_no_leases(store):
    """Nobody could extend them: calls go on, and no job pays for a crash."""
    call, kept = add(store, caller="one"), add(store)
    claims(store)
    store.sweep()
    pass_time(store, 600.0)
    assert store.sweep() == []
    assert len(store.heartbeat("one", [call.id, kept.id])) == 2
    pass_time(store, 0.5 * module.LEASE_S)
    assert store.sweep() == []
    found = store.get([call.id, kept.id])
    assert {(job.state, job.attempts) for job in found.values()} == {("running", 0)}
    assert set(lapse(store)) == {call.id}  # whose process does not come back
    assert state(store, kept) == "queued"


def test_job_ends_once(store):
    job = add(store)
    claimed = claim(store)
    assert store.cancel(job.id, DAY_S)
    assert not end(store, claimed)
    assert not store.cancel(job.id, DAY_S)
    assert state(store, job) == "cancelled"


def test_requeued_job_waits_for_its_delay_and_keeps_its_turn(store):
    first, second = add(store), add(store)
    store.requeue(claim(store), counts=True, delay_s=60.0)
    assert claim(store).id == second.id
    pass_time(store, 61.0)
    again = claim(store)
    assert (again.id, again.attempts) == (first.id, 1)


def test_suspects_run_alone_and_others_do_not_pay(store):
    """One job kills its Triton at every start, and four others run beside it."""
    killer, *others = [add(store, name) for name in ("killer", "a", "b", "c", "d")]
    deaths, beside = 0, Counter()
    while store.snapshot()["queued"]:
        running = claims(store)
        if any(job.id == killer.id and job.attempts < MAX_ATTEMPTS for job in running):
            deaths += 1
            beside.update(job.id for job in running if job.id != killer.id)
            for job in running:
                store.requeue(job, counts=True)
        else:
            assert all(end(store, job) for job in running)
    assert all(state(store, job) == "succeeded" for job in others)
    assert max(beside.values()) <= SUSPECT_ATTEMPTS
    assert deaths == MAX_ATTEMPTS


def test_suspect_waits_for_a_triton_of_its_own(store):
    suspect = add(store)
    for _ in range(SUSPECT_ATTEMPTS):
        store.requeue(claim(store), counts=True)
    store.requeue(claim(store), counts=False)
    others = [add(store, "bob") for _ in range(4)]
    busy = [store.claim("one", ["b"], None), store.claim("one", ["a"], None)]
    started = [job for job, _ in (one for one in busy if one)]
    assert suspect.id in {job.id for job in started}
    alone = next(job.triton for job in started if job.id == suspect.id)
    rest = claims(store, tritons=("a", "b"))
    assert {job.id for job in rest} | {job.id for job in started} == {suspect.id, *(job.id for job in others)}
    assert alone not in {job.triton for job in rest}


def test_reservation_for_a_suspect_starts_when_its_triton_is_idle(store):
    """Two Tritons are busy; one is drained for the suspect while the other goes on."""
    suspect = add(store)
    for _ in range(SUSPECT_ATTEMPTS):
        store.requeue(claim(store), counts=True, delay_s=0.0)
    store.requeue(claim(store), counts=True, delay_s=60.0)
    for _ in range(6):
        add(store, "bob")
    busy = {"a": store.claim("one", ["a"])[0], "b": store.claim("one", ["b"])[0]}
    pass_time(store, 61.0)
    more = claims(store, tritons=("a", "b"))
    assert suspect.id not in {job.id for job in more}
    reserved = next(name for name in busy if store.get([suspect.id])[suspect.id].triton == name)
    assert all(job.triton != reserved for job in more)
    assert end(store, busy[reserved])
    alone = claim(store, tritons=("a", "b"))
    assert (alone.id, alone.triton) == (suspect.id, reserved)
    add(store, "bob")
    assert claim(store, tritons=("a", "b")).triton != reserved


def test_work_of_ended_processes_is_taken_back(store):
    """An upload and a call end with their process; a generation is queued again."""
    upload = new_id()
    store.receive(upload, "alice", "generate", "one")
    kept, call = add(store), add(store, caller="one")
    claims(store)
    assert store.sweep() == []
    store.release("one")
    assert set(store.sweep()) == {upload, call.id}
    assert state(store, kept) == "queued"
    for id in (upload, call.id):
        store.removed(id)
    assert store.get([upload, call.id]) == {}


def test_calls_are_not_listed(store):
    call = add(store, caller="one")
    assert store.find("alice", call.id) is None
    assert store.page("alice", 2**62, 10) == []


def test_media_are_removed_by_one_process(make):
    one, other = make(), make()
    job = add(one)
    one.discard(job.id)
    assert [one.sweep(), other.sweep()] == [[job.id], []]
    pass_time(other, module.REMOVAL_LEASE_S + 1)
    assert [*other.sweep(), *lapse(other)] == [job.id]  # the first one has ended before it was done


def test_media_of_a_removed_job_stay_while_it_runs(store):
    """Else what its process writes then would never be removed."""
    job = add(store)
    claimed = claim(store)
    store.discard(job.id)
    assert store.sweep() == []
    store.let_go(claimed)
    assert store.sweep() == [job.id]
    job = add(store)
    claim(store)
    store.discard(job.id)
    assert lapse(store) == [job.id]  # its process has ended


def test_request_id_with_other_content_is_refused(store):
    add(store, request_id="r", digest="one")
    with pytest.raises(AlreadyExists):
        add(store, request_id="r", digest="other")


def test_ended_jobs_are_counted_but_keep_no_request(store):
    """Created and cancelled jobs fill neither the database nor the turns of their owner."""
    for _ in range(20):
        job = add(store, "alice", cost=100, request=b"x" * 100_000)
        assert store.snapshot()["bytes"] == 100_000
        assert store.cancel(job.id, DAY_S)
    assert store.snapshot()["bytes"] == 0
    with store.engine.connect() as connection:
        assert connection.execute(select(func.count(jobs.c.request))).scalar_one() == 0
    mine, others = add(store, "alice"), add(store, "bob", cost=50)
    assert [job.id for job in claims(store)] == [mine.id, others.id]


def test_number_of_jobs_of_an_owner_is_limited(store, monkeypatch):
    monkeypatch.setattr(module, "MAX_OWNER_JOBS", 3)
    for _ in range(3):
        assert store.cancel(add(store).id, DAY_S)
    with pytest.raises(RateLimited, match="delete"):
        store.check_quota("alice", QUOTA)
    store.check_quota("bob", QUOTA)


def test_uploads_in_progress_count_as_queued(store):
    for _ in range(2):
        store.receive(new_id(), "alice", "generate", "receiver")
    with pytest.raises(RateLimited, match="2 queued jobs"):
        store.check_quota("alice", Quota(10, 2, 2**40, 2**40))


def test_retention_is_measured_in_uptime(store):
    """A clock that jumps a month ahead, or back, removes nothing; time that passes does."""
    job = add(store)
    assert end(store, claim(store))
    store.sweep()
    for jump_s in (30 * DAY_S, -60 * DAY_S, 60 * DAY_S):
        pass_time(store, jump_s)
        assert store.sweep() == []
        assert state(store, job) == "succeeded"
    removed: list[str] = []
    for number in range(round(DAY_S / MAX_TICK_S)):
        pass_time(store, MAX_TICK_S)
        removed += store.sweep()
        assert not removed or number > 0.95 * DAY_S / MAX_TICK_S
    assert set(removed) == {job.id}


def test_quotas_refuse_with_a_delay(store):
    limits = Quota(4, 2, 100, 50)
    add(store, "alice", size=40, quota=limits)
    with pytest.raises(RateLimited, match="limit"):
        add(store, "alice", size=11, quota=limits)
    add(store, "alice", quota=limits)
    with pytest.raises(RateLimited, match="2 queued jobs"):
        store.check_quota("alice", limits)
    add(store, "bob", size=50, quota=limits)
    with pytest.raises(Overloaded, match="media storage is full"):
        add(store, "carol", size=20, quota=limits)
    add(store, "carol", quota=limits)
    with pytest.raises(Overloaded, match="queue of 4") as error:
        store.check_quota("dave", limits)
    assert error.value.retry_after_s == 60.0
    assert store.snapshot()["queued"] == 4


def test_budget_of_rows_recovers_with_time(store):
    limits = Quota(100, 100, 2**40, 2**40, rows_per_hour=100)
    add(store, cost=60, quota=limits)
    job = add(store, cost=60, quota=limits)
    with pytest.raises(RateLimited, match="100 denoiser rows") as error:
        add(store, quota=limits)
    assert error.value.retry_after_s == pytest.approx(20 / 100 * 3600, rel=0.05)
    assert store.cancel(job.id, DAY_S)  # a job that has not started costs nothing
    claimed = claim(store)
    store.charge(claimed, 110)  # its video was longer than one window
    with pytest.raises(RateLimited):
        store.check_quota("alice", limits)
    store.check_quota("bob", limits)
    pass_time(store, 1800.0)
    store.check_quota("alice", limits)


def test_changes_of_other_processes_are_signalled(make):
    store, other = make(), make()
    job = add(other)

    async def scenario() -> None:
        with ThreadPoolExecutor(2) as threads:
            signals = changes(store.engine, threads)
            assert await anext(signals) is None

            async def seen() -> None:
                async for id in signals:
                    if id == job.id or (id is None and state(store, job) == "cancelled"):
                        return

            watching = asyncio.create_task(seen())
            await asyncio.sleep(0.5)
            await asyncio.to_thread(other.cancel, job.id, DAY_S)
            await asyncio.wait_for(watching, 10)
            await signals.aclose()

    asyncio.run(scenario())


def test_database_that_restarts_is_unavailable_then_works(postgres_server):
    store = Store(postgres_server.database())
    try:
        job = add(store)
        postgres_server.stop()
        try:
            with pytest.raises(DatabaseUnavailable) as error:
                add(store)
            assert error.value.retry_after_s is not None
        finally:
            postgres_server.start()
        assert claim(store).id == job.id
    finally:
        store.close()


KILLED = """
import sys, uuid
from foley_server.jobs.store import Quota, Store, new_id
store, quota = Store(sys.argv[1]), Quota(10**6, 10**6, 2**40, 2**40)
while True:
    id = new_id()
    store.receive(id, "alice", "generate", "p")
    store.accept(id, b"r", 1, 0, quota)
    print("added", id, flush=True)
    job, _ = store.claim("p", ["a"])
    if job.number % 3:
        store.end(job, "succeeded", b"r", "[]", 0, 3600.0)
        print("ended", job.id, flush=True)
"""


def test_sigkill_loses_no_acknowledged_change(store_url, make):
    added, ended = set(), set()
    rng = random.Random(0)
    for _ in range(4):
        process = subprocess.Popen([sys.executable, "-c", KILLED, store_url], stdout=subprocess.PIPE, text=True)
        first = process.stdout.readline()
        timer = threading.Timer(rng.uniform(0.1, 0.4), process.kill)
        timer.start()
        output, _ = process.communicate()
        for line in (first + output).splitlines():
            event, _, id = line.partition(" ")
            if len(id) == 32:
                (added if event == "added" else ended).add(id)
    assert len(added) > 20
    store = make()
    kept = {job.id: job.state for job in store.page("alice", 2**62, 10**6)}
    assert added <= kept.keys()
    assert all(kept[id] == "succeeded" for id in ended)
    store.release("p")
    store.sweep()
    assert store.snapshot()["running"] == 0
    assert store.snapshot()["queued"] == sum(state != "succeeded" for state in kept.values())


def test_unusable_databases_are_refused(tmp_path):
    (tmp_path / "file").write_bytes(os.urandom(5000))
    with pytest.raises(OutputError, match="--store"):
        Store(f"sqlite:///{tmp_path}/file")
    with pytest.raises(OutputError):
        Store(f"sqlite:///{tmp_path}/nowhere/jobs.sqlite")
    with pytest.raises(OutputError) as error:
        Store("postgresql://foley:geheim@127.0.0.1:1/foley")
    assert "geheim" not in str(error.value)
    for store_url in ("mysql://localhost/foley", "foley.sqlite", "sqlite://", "", "postgresql://host:port/foley"):
        with pytest.raises(SettingError):
            Store(store_url)


def test_store_of_a_newer_version_is_refused(make, store_url):
    with make().engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(OutputError, match="9999"):
        Store(store_url)


def test_sqlite_on_a_network_file_system_is_refused(tmp_path, monkeypatch):
    """The type of the file system is read from the system; only the list of those that are refused is changed."""
    assert database.file_system(Path("/proc/self")) == "proc"
    monkeypatch.setattr(database, "NETWORK_FILE_SYSTEMS", {database.file_system(tmp_path)})
    with pytest.raises(OutputError, match="network file system"):
        Store(f"sqlite:///{tmp_path}/jobs.sqlite")


FIRST_VERSION = """
CREATE TABLE generations (
    number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, owner TEXT NOT NULL, request_id TEXT NOT NULL,
    digest TEXT NOT NULL, options BLOB NOT NULL, state TEXT NOT NULL, attempts INTEGER NOT NULL DEFAULT 0,
    created_s REAL NOT NULL, started_s REAL, ended_s REAL, result BLOB, UNIQUE (owner, request_id)
);
CREATE TABLE reserved (id TEXT PRIMARY KEY);
"""


def test_generations_of_the_first_version_are_taken_over(tmp_path):
    path = tmp_path / "generations.sqlite"
    ids = {name: uuid.uuid4().hex for name in ("running", "succeeded", "reserved")}
    with sqlite3.connect(path) as old:
        old.executescript(FIRST_VERSION)
        row = "INSERT INTO generations VALUES (?, ?, 'alice', ?, 'd', ?, ?, 1, 1.0, 2.0, ?, ?)"
        old.execute(row, (1, ids["running"], "r1", b"o", "running", None, None))
        old.execute(row, (2, ids["succeeded"], "r2", b"o", "succeeded", 3.0, b"done"))
        old.execute("INSERT INTO reserved VALUES (?)", (ids["reserved"],))
    store = Store(f"sqlite:///{path}")
    assert store.sweep() == [ids["reserved"]]
    done = store.find("alice", ids["succeeded"])
    assert (done.result, done.starts) == (b"done", 0)  # its media are not in a folder of a start
    job, request = store.claim("one", ["a"])
    assert (job.id, job.request_id, request) == (ids["running"], "r1", b"o")
    store.close()
    Store(f"sqlite:///{path}").close()
