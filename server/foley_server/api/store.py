"""Long-running generations in an SQLite file: what was asked for, where it is, what came of it.

Every change is one transaction that is on the disk when the method returns, so that whenever the process is killed,
each generation is in exactly one state. Safe to use from several threads; one process at a time.
"""

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from foley.errors import OutputError

State = Literal["queued", "running", "succeeded", "failed", "cancelled"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS generations (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    owner TEXT NOT NULL,
    request_id TEXT NOT NULL,
    digest TEXT NOT NULL,
    options BLOB NOT NULL,
    state TEXT NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    created_s REAL NOT NULL,
    started_s REAL,
    ended_s REAL,
    result BLOB,
    UNIQUE (owner, request_id)
);
CREATE INDEX IF NOT EXISTS waiting ON generations (state, number);
CREATE TABLE IF NOT EXISTS reserved (id TEXT PRIMARY KEY);
"""
_COLUMNS = "number, id, owner, request_id, digest, options, state, attempts, created_s, started_s, ended_s, result"


@dataclass(frozen=True)
class Row:
    """One generation.

    Attributes:
        number: they count up in the order in which they were accepted.
        digest: of everything that was asked for.
        options: a GenerateOptions.
        attempts: how often it was begun.
        result: a Generation where it succeeded, a google.rpc.Status where it failed.
    """

    number: int
    id: str
    owner: str
    request_id: str
    digest: str
    options: bytes
    state: State
    attempts: int
    created_s: float
    started_s: float | None
    ended_s: float | None
    result: bytes | None

    @property
    def ended(self) -> bool:
        """Whether nothing more happens to it."""
        return self.state not in ("queued", "running")


class Store:
    """The file. Raises OutputError where it cannot be used."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        connection = None
        try:
            connection = self._connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=FULL")
            self._connection.executescript(_SCHEMA)
            # what was under way when the process before us ended, begins again
            self._connection.execute("UPDATE generations SET state = 'queued' WHERE state = 'running'")
        except sqlite3.Error as error:
            if connection:
                connection.close()
            raise OutputError(f"{path} cannot be used as a store ({error}); choose another --data") from error

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def reserve(self, id: str) -> None:
        """Record an id before its media are written, so that they can be removed if it is never accepted.

        Media are removed by these records only, never by what is found in the place that holds them: it may hold
        other people's files.
        """
        with self._transaction() as run:
            run.execute("INSERT INTO reserved (id) VALUES (?)", (id,))

    def reserved(self) -> set[str]:
        """The ids whose media may exist although no generation refers to them."""
        with self._transaction() as run:
            return {id for (id,) in run.execute("SELECT id FROM reserved")}

    def release(self, id: str) -> None:
        """Forget an id whose media are removed."""
        with self._transaction() as run:
            run.execute("DELETE FROM reserved WHERE id = ?", (id,))

    def add(self, id: str, owner: str, request_id: str, digest: str, options: bytes) -> Row:
        """A new queued generation; where `owner` has given this `request_id` before, the one that there is.

        `id` is no longer reserved where a new one was made of it.
        """
        with self._transaction() as run:
            run.execute(
                "INSERT INTO generations (id, owner, request_id, digest, options, state, created_s) "
                "VALUES (?, ?, ?, ?, ?, 'queued', ?) ON CONFLICT (owner, request_id) DO NOTHING",
                (id, owner, request_id, digest, options, time.time()),
            )
            query = f"SELECT {_COLUMNS} FROM generations WHERE owner = ? AND request_id = ?"
            row = _one(run.execute(query, (owner, request_id)))
            assert row is not None
            run.execute("DELETE FROM reserved WHERE id = ?", (row.id,))
        return row

    def find(self, owner: str, id: str) -> Row | None:
        """The generation `id` of `owner`."""
        with self._transaction() as run:
            return _one(run.execute(f"SELECT {_COLUMNS} FROM generations WHERE owner = ? AND id = ?", (owner, id)))

    def find_request(self, owner: str, request_id: str) -> Row | None:
        """The generation that `owner` has given `request_id`."""
        with self._transaction() as run:
            query = f"SELECT {_COLUMNS} FROM generations WHERE owner = ? AND request_id = ?"
            return _one(run.execute(query, (owner, request_id)))

    def by_id(self, id: str) -> Row | None:
        """The generation `id`, whoever's it is."""
        with self._transaction() as run:
            return _one(run.execute(f"SELECT {_COLUMNS} FROM generations WHERE id = ?", (id,)))

    def page(self, owner: str, before: int, count: int) -> list[Row]:
        """Up to `count` of `owner` whose number is below `before`, the newest first."""
        with self._transaction() as run:
            query = f"SELECT {_COLUMNS} FROM generations WHERE owner = ? AND number < ? ORDER BY number DESC LIMIT ?"
            return [Row(*values) for values in run.execute(query, (owner, before, count))]

    def claim(self) -> Row | None:
        """The oldest queued one, which is running from now on."""
        with self._transaction() as run:
            return _one(
                run.execute(
                    "UPDATE generations SET state = 'running', attempts = attempts + 1, started_s = ? "
                    "WHERE number = (SELECT min(number) FROM generations WHERE state = 'queued') "
                    f"RETURNING {_COLUMNS}",
                    (time.time(),),
                )
            )

    def put_back(self, id: str, tried: bool) -> None:
        """A running one is queued again; `tried`: this counts as one of its attempts."""
        with self._transaction() as run:
            run.execute(
                "UPDATE generations SET state = 'queued', attempts = attempts - ? WHERE id = ? AND state = 'running'",
                (0 if tried else 1, id),
            )

    def end(self, id: str, state: State, result: bytes | None = None) -> bool:
        """One that has not ended ends in `state`; whether it had not."""
        with self._transaction() as run:
            changed = run.execute(
                "UPDATE generations SET state = ?, result = ?, ended_s = ? "
                "WHERE id = ? AND state IN ('queued', 'running')",
                (state, result, time.time(), id),
            )
            return changed.rowcount == 1

    def remove(self, id: str) -> None:
        """Forget a generation; its id is reserved until its media are removed, too."""
        with self._transaction() as run:
            run.execute("DELETE FROM generations WHERE id = ?", (id,))
            run.execute("INSERT OR IGNORE INTO reserved (id) VALUES (?)", (id,))

    def expired(self, before_s: float) -> list[str]:
        """Those that ended before then."""
        with self._transaction() as run:
            return [id for (id,) in run.execute("SELECT id FROM generations WHERE ended_s < ?", (before_s,))]

    def count(self, state: State) -> int:
        """How many are in `state`."""
        with self._transaction() as run:
            (number,) = run.execute("SELECT count(*) FROM generations WHERE state = ?", (state,)).fetchone()
            return int(number)

    def in_front_of(self, number: int) -> int:
        """How many queued ones were accepted before `number`."""
        with self._transaction() as run:
            query = "SELECT count(*) FROM generations WHERE state = 'queued' AND number < ?"
            (found,) = run.execute(query, (number,)).fetchone()
            return int(found)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")


def _one(cursor: sqlite3.Cursor) -> Row | None:
    values = cursor.fetchone()
    return Row(*values) if values else None
