"""The leased store of jobs, shared by all API processes.

A job is a row. A process that receives, runs or waits for a job holds a lease on it, which a heartbeat extends. When
the lease lapses, because the process has ended or hangs, the job is queued again, or removed if only the process wanted
it.

Every change is one transaction, committed when the method returns, so each job is in exactly one state whenever a
process is killed. Claims are fair between owners: self-clocked fair queueing (Golestani 1994), with the cost of a job
in denoiser rows. Methods are thread-safe, and raise `DatabaseUnavailable` if the database cannot be reached or written.
"""

import uuid
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, cast

from sqlalchemy import ColumnElement, Connection, and_, case, delete, func, insert, literal_column, or_, select, update

from foley.errors import AlreadyExists, Overloaded, RateLimited
from foley_server.jobs import database
from foley_server.jobs.schema import jobs, owners, service

Kind = Literal["generate", "envelope", "embedding"]
State = Literal["receiving", "queued", "running", "succeeded", "failed", "cancelled", "deleting"]

LEASE_S = 30.0  # of a process on its jobs; its heartbeat must come several times as often
REMOVAL_LEASE_S = 300.0  # of a process that removes media
RESERVATION_S = 600.0  # of a Triton for a suspect that waits until the Triton is idle
SUSPECT_ATTEMPTS = 2  # crashes after which a job runs alone on its Triton
MAX_TICK_S = 300.0  # by which one update advances the service's uptime, whatever the clock does
MAX_OWNER_JOBS = 10_000  # in any state
PAGE = 100  # media removed per sweep
CHANNEL = "foley_jobs"  # Postgres' NOTIFY channel; the payload is the id of a job

_ENDED = ("succeeded", "failed", "cancelled")
_CLOCK: Mapping[str, ColumnElement[float]] = {
    "sqlite": literal_column("((julianday('now') - 2440587.5) * 86400.0)"),
    "postgresql": literal_column("extract(epoch from clock_timestamp())::float8"),
}
_COLUMNS = [column for column in jobs.c if column.name != "request"]


@dataclass(frozen=True)
class Job:
    """One job; see `schema.jobs`."""

    number: int
    id: str
    owner: str
    request_id: str | None
    digest: str | None
    kind: Kind
    trace: str
    state: State
    cost: int
    turn: int
    size_bytes: int
    attempts: int
    starts: int
    holder: str | None
    lease_s: float | None
    caller: str | None
    caller_s: float | None
    triton: str | None
    available_s: float | None
    progress: str | None
    result: bytes | None
    created_s: float
    started_s: float | None
    ended_s: float | None
    expires_uptime_s: float | None

    @property
    def ended(self) -> bool:
        """Whether the state is final."""
        return self.state in (*_ENDED, "deleting")


@dataclass(frozen=True)
class Quota:
    """Limits at the acceptance of a job.

    Attributes:
        queued: Maximum number of queued jobs.
        owner_queued: Maximum number of queued jobs of one owner.
        bytes: Maximum size of all stored media.
        owner_bytes: Maximum size of the stored media of one owner.
        rows_per_hour: Budget of the owner, in denoiser rows; None: unlimited. An unused budget accumulates for an hour.
    """

    queued: int
    owner_queued: int
    bytes: int
    owner_bytes: int
    rows_per_hour: float | None = None


class Store:
    """The database of jobs.

    Args:
        url: `sqlite:///PATH` or `postgresql://…`.

    Attributes:
        engine: The database.
        service_id: Identity of the service, which all its processes share.

    Raises:
        SettingError: The URL is not valid.
        OutputError: The database cannot be used.
    """

    def __init__(self, url: str) -> None:
        self.engine = database.connect(url)
        self._now: ColumnElement[float] = _CLOCK[self.engine.dialect.name]
        self._notifies = self.engine.dialect.name == "postgresql"
        with self._read() as db:
            self.service_id: str = db.execute(select(service.c.id)).scalar_one()

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()

    # -- receiving

    def check_quota(self, owner: str, quota: Quota) -> None:
        """Check that a job of `owner` would be accepted now, before its files are received.

        Raises:
            Overloaded: A limit of the service is reached.
            RateLimited: A limit of the owner is reached.
        """
        with self._read() as db:
            self._check_quota(db, owner, quota)

    def receive(self, id: str, owner: str, kind: Kind, holder: str) -> None:
        """Add a job whose files `holder` receives. Media are written only for ids in the database."""
        with self._write() as db:
            row = {"id": id, "owner": owner, "kind": kind, "state": "receiving", "holder": holder}
            db.execute(insert(jobs).values(**row, created_s=self._now, lease_s=self._now + LEASE_S))

    def accept(
        self,
        id: str,
        request: bytes,
        cost: int,
        size: int,
        quota: Quota,
        *,
        request_id: str | None = None,
        digest: str | None = None,
        caller: str | None = None,
        trace: str = "{}",
    ) -> Job:
        """Queue a received job.

        Args:
            id: Id of the job.
            request: Serialised request.
            cost: Cost in denoiser rows.
            size: Size of its files in bytes.
            quota: Limits.
            request_id: Idempotency key, unique per owner.
            digest: Digest of the request and its files.
            caller: Process that serves a caller who waits for the job. The job is removed when this process ends.
            trace: Trace context, JSON.

        Returns:
            The job, or the one that the owner's earlier request with this `request_id` made; `id` is then abandoned.

        Raises:
            AlreadyExists: The earlier request had another digest.
            Overloaded: A limit of the service is reached.
            RateLimited: A limit of the owner is reached.
        """
        with self._write() as db:
            virtual_time: int = db.execute(select(service.c.turn).with_for_update()).scalar_one()  # serialises
            # this row first, then that of the owner: the order in which all transactions lock them
            found = db.execute(select(jobs.c.owner).where(jobs.c.id == id).with_for_update()).one_or_none()
            if found is None:
                raise _interrupted()
            owner: str = found.owner
            earlier = self._request(db, owner, request_id) if request_id else None
            if earlier:
                if earlier.digest != digest:
                    raise AlreadyExists(
                        f"the request id {request_id} was used for a different request; choose a new one"
                    )
                db.execute(update(jobs).where(jobs.c.id == id).values(state="deleting", lease_s=None))
                return earlier
            self._check_quota(db, owner, quota, size, id)
            account = db.execute(select(owners).where(owners.c.name == owner)).one_or_none()
            if account is None:
                db.execute(insert(owners).values(name=owner))
            turn = max(virtual_time, account.turn if account else 0) + cost
            share = {"turn": turn, "rows_per_hour": quota.rows_per_hour}
            db.execute(update(owners).where(owners.c.name == owner).values(**share))
            self._spend(db, owner, cost)
            values: dict[str, Any] = {
                "state": "queued",
                "request": request,
                "request_id": request_id,
                "digest": digest,
                "trace": trace,
                "cost": cost,
                "turn": turn,
                "size_bytes": size + len(request),
                "holder": None,
                "lease_s": None,
                "caller": caller,
                "caller_s": self._now + LEASE_S if caller else None,
            }
            receiving = and_(jobs.c.id == id, jobs.c.state == "receiving")
            if not db.execute(update(jobs).where(receiving).values(**values)).rowcount:
                raise _interrupted()
            self._notify(db, id)
            return self._one(db, jobs.c.id == id)

    # -- running

    def claim(self, holder: str, tritons: Sequence[str], caller: str | None = None) -> tuple[Job, bytes] | None:
        """Start the next job on the least loaded of `tritons`.

        A suspect, which has crashed `SUSPECT_ATTEMPTS` times, runs alone: a Triton is reserved for it, and starts no
        other job until the suspect has ended.

        Args:
            holder: The process that will run the job.
            tritons: Names of the Tritons that take work.
            caller: Consider only jobs with this caller.

        Returns:
            The job and its request; None if there is nothing to do.
        """
        if not tritons:
            return None
        with self._read() as db:  # an idle service takes no lock
            if not db.execute(select(jobs.c.id).where(jobs.c.state == "queued").limit(1)).first():
                return None
        with self._write() as db:
            db.execute(select(service.c.turn).with_for_update()).scalar_one()  # one claim at a time
            loads = self._loads(db, tritons)
            suspect = jobs.c.attempts >= SUSPECT_ATTEMPTS
            taken = select(jobs.c.triton).where(suspect, jobs.c.state.in_(("queued", "running")))
            reserved = {name for (name,) in db.execute(taken) if name}
            for name in reserved & {name for name in tritons if loads[name] == 0}:
                waiting = self._next(db, jobs.c.triton == name, caller)
                if waiting:
                    return self._start(db, waiting, holder, name)
            free = sorted((name for name in tritons if name not in reserved), key=lambda name: loads[name])
            while free:
                job = self._next(db, jobs.c.triton.is_(None), caller)
                if job is None or job.attempts < SUSPECT_ATTEMPTS or loads[free[0]] == 0:
                    return self._start(db, job, holder, free[0]) if job else None
                reservation = {"triton": free.pop(0), "lease_s": self._now + RESERVATION_S}
                db.execute(update(jobs).where(jobs.c.id == job.id).values(**reservation))
            return None

    def heartbeat(self, holder: str, ids: Sequence[str]) -> set[tuple[str, int]]:
        """Extend the leases of a process.

        Args:
            holder: The process.
            ids: The jobs that it receives, runs or waits for. Its leases on others lapse: it does not know of them,
                because the answer to a call of this store was lost.

        Returns:
            Id and number of starts of each job that the process runs. It must stop those that are not among them.
        """
        with self._write() as db:
            known = jobs.c.id.in_(ids)
            held = and_(known, jobs.c.holder == holder, jobs.c.state.in_(("receiving", "running")))
            db.execute(update(jobs).where(held).values(lease_s=self._now + LEASE_S))
            waits = and_(known, jobs.c.caller == holder, jobs.c.state != "deleting")
            db.execute(update(jobs).where(waits).values(caller_s=self._now + LEASE_S))
            running = select(jobs.c.id, jobs.c.starts).where(jobs.c.holder == holder, jobs.c.state == "running")
            return {(id, starts) for id, starts in db.execute(running)}

    def report(self, job: Job, progress: str) -> None:
        """Store the progress of a claimed job; has no effect if the claim is lost."""
        with self._write() as db:
            if db.execute(update(jobs).where(self._claimed(job)).values(progress=progress)).rowcount:
                self._notify(db, job.id)

    def charge(self, job: Job, cost: int) -> None:
        """Correct the cost of a claimed job, which is known once its video has been read."""
        with self._write() as db:
            if db.execute(update(jobs).where(self._claimed(job)).values(cost=cost)).rowcount:
                more = cost - job.cost
                db.execute(update(owners).where(owners.c.name == job.owner).values(turn=owners.c.turn + more))
                self._spend(db, job.owner, more)

    def requeue(self, job: Job, counts: bool, delay_s: float = 0.0) -> None:
        """Queue a claimed job again; has no effect if the claim is lost.

        Args:
            job: The job, as returned by `claim`.
            counts: Whether the start counts as a crash.
            delay_s: Time for which it is not claimed.
        """
        with self._write() as db:
            values = {"attempts": jobs.c.attempts + int(counts), "available_s": self._now + delay_s, **_RELEASED}
            if db.execute(update(jobs).where(self._claimed(job)).values(**values)).rowcount:
                self._notify(db, job.id)

    def end(self, job: Job, state: State, result: bytes, progress: str, size: int, keep_s: float) -> bool:
        """Move a claimed job to a final state.

        Args:
            job: The job, as returned by `claim`.
            state: "succeeded" or "failed".
            result: Serialised result or error.
            progress: Its last progress.
            size: Size of its media in bytes.
            keep_s: Time for which it is kept.

        Returns:
            Whether this is its state: False if the job was cancelled, or its claim is lost. A repeated call returns the
            same.
        """
        with self._write() as db:
            values = {"result": result, "progress": progress, "size_bytes": size + len(result)}
            if self._end(db, self._claimed(job), job.id, state, keep_s, **values):
                return True
            same = and_(jobs.c.id == job.id, jobs.c.starts == job.starts, jobs.c.state == state)  # only by this claim
            return db.execute(select(jobs.c.id).where(same)).first() is not None

    def let_go(self, job: Job) -> None:
        """End the lease on a claimed job that was removed, so that its media can be removed."""
        with self._write() as db:
            held = and_(jobs.c.holder == job.holder, jobs.c.starts == job.starts, jobs.c.state == "deleting")
            db.execute(update(jobs).where(jobs.c.id == job.id, held).values(lease_s=None))

    def release(self, holder: str) -> None:
        """End the leases of a process that is known to have ended, so that its jobs need not wait for it."""
        with self._write() as db:
            db.execute(update(jobs).where(jobs.c.holder == holder).values(lease_s=0.0))
            db.execute(update(jobs).where(jobs.c.caller == holder).values(caller_s=0.0))

    # -- callers

    def cancel(self, id: str, keep_s: float) -> bool:
        """Cancel a job.

        Returns:
            Whether the state has changed: False if the job had ended.
        """
        with self._write() as db:
            self._refund(db, id)
            waiting = and_(jobs.c.id == id, jobs.c.state.in_(("queued", "running")))
            return self._end(db, waiting, id, "cancelled", keep_s, size_bytes=0)

    def abandon(self, id: str) -> None:
        """Remove a job whose files are no longer received; has no effect on one that was accepted."""
        with self._write() as db:
            receiving = and_(jobs.c.id == id, jobs.c.state == "receiving")
            db.execute(update(jobs).where(receiving).values(state="deleting", lease_s=None))

    def discard(self, id: str) -> None:
        """Remove a job in any state; a sweep removes its media, once no process receives or runs it any more."""
        with self._write() as db:
            self._refund(db, id)
            db.execute(update(jobs).where(jobs.c.id == id).values(**_REMOVAL))
            self._notify(db, id)

    def find(self, owner: str, id: str) -> Job | None:
        """Return the long-running generation `id` if it belongs to `owner`."""
        with self._read() as db:
            return self._maybe(db, and_(_VISIBLE, jobs.c.owner == owner, jobs.c.id == id))

    def find_request(self, owner: str, request_id: str) -> Job | None:
        """Return the generation of `owner` with this `request_id`."""
        with self._read() as db:
            return self._request(db, owner, request_id)

    def get(self, ids: Sequence[str]) -> dict[str, Job]:
        """Return the jobs with these ids, in any state."""
        with self._read() as db:
            found = db.execute(select(*_COLUMNS).where(jobs.c.id.in_(ids)))
            return {row.id: _job(row) for row in found}

    def page(self, owner: str, before: int, count: int) -> list[Job]:
        """Return up to `count` long-running generations of `owner` with numbers below `before`, newest first."""
        with self._read() as db:
            query = select(*_COLUMNS).where(_VISIBLE, jobs.c.owner == owner, jobs.c.number < before)
            return [_job(row) for row in db.execute(query.order_by(jobs.c.number.desc()).limit(count))]

    def positions(self, ids: Sequence[str]) -> dict[str, int]:
        """Return the positions, from 1, of those of these jobs that are queued."""
        with self._read() as db:
            rank = func.row_number().over(order_by=(jobs.c.turn, jobs.c.number)).label("position")
            queue = select(jobs.c.id, rank).where(jobs.c.state == "queued").subquery()
            ranks = db.execute(select(queue).where(queue.c.id.in_(ids)))
            return {row.id: row.position for row in ranks}

    # -- housekeeping

    def sweep(self) -> list[str]:
        """Take back lapsed leases, and expire jobs that have ended.

        Returns:
            Ids of jobs whose media the caller must remove; it calls `removed` for each.
        """
        with self._write() as db:
            now: float = db.execute(select(self._now)).scalar_one()
            clock: float = db.execute(select(service.c.clock_s).with_for_update()).scalar_one()
            tick_s = min(max(0.0, now - clock), MAX_TICK_S)
            db.execute(update(service).values(uptime_s=service.c.uptime_s + tick_s, clock_s=now))
            if clock and now - clock > LEASE_S:
                # Nobody could extend a lease: the database was away, or the clock has jumped. `release` sets 0.
                for lease in (jobs.c.lease_s, jobs.c.caller_s):
                    db.execute(update(jobs).where(lease > 0, lease < now).values({lease: now + LEASE_S}))
            uptime_s: float = db.execute(select(service.c.uptime_s)).scalar_one()

            lapsed = jobs.c.lease_s < now
            left = and_(jobs.c.caller.is_not(None), jobs.c.caller_s < now, jobs.c.state != "deleting")
            abandoned = and_(jobs.c.state == "receiving", lapsed)
            for gone in (left, abandoned, jobs.c.expires_uptime_s <= uptime_s):
                db.execute(update(jobs).where(gone).values(**_REMOVAL))
            crashed = and_(jobs.c.state == "running", lapsed)
            db.execute(update(jobs).where(crashed).values(attempts=jobs.c.attempts + 1, **_RELEASED))
            db.execute(update(jobs).where(jobs.c.state == "queued", lapsed).values(triton=None, lease_s=None))

            free = and_(jobs.c.state == "deleting", or_(jobs.c.lease_s.is_(None), lapsed))
            ids = [id for (id,) in db.execute(select(jobs.c.id).where(free).limit(PAGE).with_for_update())]
            db.execute(update(jobs).where(jobs.c.id.in_(ids)).values(lease_s=now + REMOVAL_LEASE_S))
            return ids

    def removed(self, id: str) -> None:
        """Delete the row of a job whose media have been removed."""
        with self._write() as db:
            db.execute(delete(jobs).where(jobs.c.id == id, jobs.c.state == "deleting"))

    def snapshot(self) -> Mapping[str, float]:
        """Return figures for metrics: `queued`, `running`, `oldest_queued_s` (0 if none is queued) and `bytes`."""
        with self._read() as db:
            oldest = func.min(case((jobs.c.state == "queued", jobs.c.created_s)))
            queued = func.count(case((jobs.c.state == "queued", 1)))
            running = func.count(case((jobs.c.state == "running", 1)))
            size = func.coalesce(func.sum(jobs.c.size_bytes), 0)
            row = db.execute(select(queued, running, size, oldest, self._now)).one()
        age_s = max(0.0, row[4] - row[3]) if row[3] is not None else 0.0
        return {"queued": row[0], "running": row[1], "bytes": float(row[2]), "oldest_queued_s": age_s}

    # -- parts of transactions

    def _read(self) -> AbstractContextManager[Connection]:
        return database.transaction(self.engine, write=False)

    def _write(self) -> AbstractContextManager[Connection]:
        return database.transaction(self.engine, write=True)

    def _notify(self, db: Connection, id: str) -> None:
        if self._notifies:  # processes that share a SQLite file poll it, see `changes`
            db.execute(select(func.pg_notify(CHANNEL, id)))

    def _claimed(self, job: Job) -> ColumnElement[bool]:
        held = and_(jobs.c.holder == job.holder, jobs.c.starts == job.starts)
        return and_(jobs.c.id == job.id, jobs.c.state == "running", held)

    def _end(
        self, db: Connection, where: ColumnElement[bool], id: str, state: State, keep_s: float, **values: Any
    ) -> bool:
        expires = select(service.c.uptime_s + keep_s).scalar_subquery()
        ended = {"state": state, "ended_s": self._now, "holder": None, "lease_s": None, "expires_uptime_s": expires}
        ended["request"] = None
        changed = bool(db.execute(update(jobs).where(where).values(**ended, **values)).rowcount)
        if changed:
            self._notify(db, id)
        return changed

    def _start(self, db: Connection, job: Job, holder: str, triton: str) -> tuple[Job, bytes]:
        values = {"holder": holder, "triton": triton, "starts": job.starts + 1, "progress": None}
        where = jobs.c.id == job.id
        lease = {"started_s": self._now, "lease_s": self._now + LEASE_S}
        db.execute(update(jobs).where(where).values(state="running", **values, **lease))
        turn = case((service.c.turn < job.turn, job.turn), else_=service.c.turn)
        db.execute(update(service).values(turn=turn))
        self._notify(db, job.id)
        request: bytes = db.execute(select(jobs.c.request).where(where)).scalar_one()
        return self._one(db, where), request

    def _next(self, db: Connection, where: ColumnElement[bool], caller: str | None) -> Job | None:
        """Return the queued job with the earliest turn, and lock it; skip those that others change at this moment."""
        due = or_(jobs.c.available_s.is_(None), jobs.c.available_s <= self._now)
        query = select(*_COLUMNS).where(jobs.c.state == "queued", due, where)
        if caller is not None:
            query = query.where(jobs.c.caller == caller)
        row = db.execute(query.order_by(jobs.c.turn, jobs.c.number).limit(1).with_for_update(skip_locked=True)).first()
        return _job(row) if row else None

    def _loads(self, db: Connection, tritons: Sequence[str]) -> dict[str, int]:
        """Return the cost of the running jobs of each Triton."""
        query = select(jobs.c.triton, func.sum(jobs.c.cost)).where(jobs.c.state == "running")
        loads = {name: int(cost) for name, cost in db.execute(query.group_by(jobs.c.triton))}
        return {name: loads.get(name, 0) for name in tritons}

    def _check_quota(self, db: Connection, owner: str, quota: Quota, size: int = 0, upload: str = "") -> None:
        mine = jobs.c.owner == owner
        queued = jobs.c.state.in_(("receiving", "queued"))
        counts = select(
            func.count(case((queued, 1))),
            func.count(case((and_(queued, mine), 1))),
            func.coalesce(func.sum(jobs.c.size_bytes), 0),
            func.coalesce(func.sum(case((mine, jobs.c.size_bytes), else_=0)), 0),
            func.count(case((mine, 1))),
        )
        all_queued, own_queued, all_bytes, own_bytes, own_jobs = db.execute(counts.where(jobs.c.id != upload)).one()
        if own_jobs >= MAX_OWNER_JOBS:
            limit = f"you have {own_jobs} generations, the limit; delete those that you do not need"
            raise _overloaded(limit, 60.0, RateLimited)
        if all_queued >= quota.queued:
            raise _overloaded(f"the queue of {quota.queued} jobs is full; try again later", 60.0)
        if all_bytes + size > quota.bytes:
            raise _overloaded("the server's media storage is full; try again later", 60.0)
        if own_queued >= quota.owner_queued:
            raise _overloaded(f"you have {own_queued} queued jobs, the limit; wait for some to end", 60.0, RateLimited)
        if own_bytes + size > quota.owner_bytes:
            limit = f"your media would exceed {quota.owner_bytes >> 20} MiB, the limit; delete results that you have"
            raise _overloaded(f"{limit} read", 60.0, RateLimited)
        if quota.rows_per_hour is not None:
            over = self._spent(db, owner, quota.rows_per_hour) - quota.rows_per_hour
            if over >= 0:
                wait_s = max(1.0, over / quota.rows_per_hour * 3600)
                raise _overloaded(
                    f"the budget of {quota.rows_per_hour:g} denoiser rows an hour is used up; wait, or request less",
                    wait_s,
                    RateLimited,
                )

    def _spent(self, db: Connection, owner: str, rows_per_hour: float) -> float:
        """Return the used part of an owner's budget, which recovers by `rows_per_hour`."""
        row = db.execute(select(owners.c.spent_rows, self._now - owners.c.spent_at_s).where(owners.c.name == owner))
        found = row.one_or_none()
        return max(0.0, found[0] - max(0.0, found[1]) * rows_per_hour / 3600) if found else 0.0

    def _spend(self, db: Connection, owner: str, rows: int) -> None:
        rate = db.execute(select(owners.c.rows_per_hour).where(owners.c.name == owner).with_for_update()).scalar()
        if rate is not None:
            spent = max(0.0, self._spent(db, owner, rate) + rows)
            db.execute(update(owners).where(owners.c.name == owner).values(spent_rows=spent, spent_at_s=self._now))

    def _refund(self, db: Connection, id: str) -> None:
        """Give the cost of a job that has not started back to its owner."""
        unstarted = and_(jobs.c.id == id, jobs.c.state == "queued", jobs.c.starts == 0)
        job = db.execute(select(jobs.c.owner, jobs.c.cost).where(unstarted).with_for_update()).one_or_none()
        if job:
            self._spend(db, job.owner, -job.cost)
            db.execute(update(owners).where(owners.c.name == job.owner).values(turn=owners.c.turn - job.cost))

    def _request(self, db: Connection, owner: str, request_id: str | None) -> Job | None:
        return self._maybe(db, and_(jobs.c.owner == owner, jobs.c.request_id == request_id))

    def _maybe(self, db: Connection, where: ColumnElement[bool]) -> Job | None:
        row = db.execute(select(*_COLUMNS).where(where)).first()
        return _job(row) if row else None

    def _one(self, db: Connection, where: ColumnElement[bool]) -> Job:
        return _job(db.execute(select(*_COLUMNS).where(where)).one())


_REMOVAL: Mapping[str, Any] = {
    "state": "deleting",
    "request_id": None,
    "caller": None,
    "expires_uptime_s": None,
    # the media stay while a process receives or runs it, else what that process writes then would never be removed
    "lease_s": case((jobs.c.state.in_(("receiving", "running")), jobs.c.lease_s), else_=None),
}
_RELEASED: Mapping[str, Any] = {"state": "queued", "holder": None, "lease_s": None, "triton": None, "progress": None}
_VISIBLE = and_(jobs.c.caller.is_(None), jobs.c.state.not_in(("receiving", "deleting")))


def new_id() -> str:
    """Return the id of a new job."""
    return uuid.uuid4().hex


def _job(row: Any) -> Job:
    return cast(Job, Job(**row._mapping))


def _interrupted() -> Overloaded:
    return _overloaded("the upload was interrupted; send it again", 1.0)


def _overloaded(message: str, retry_after_s: float, kind: type[Overloaded] = Overloaded) -> Overloaded:
    error = kind(message)
    error.retry_after_s = retry_after_s
    return error
