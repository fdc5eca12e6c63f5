"""SQLite database of long-running generations: request, state and result.

Every change is one transaction that is on disk when the method returns, so each generation is in exactly one state
whenever the process is killed. Thread-safe; only one process may use the file at a time.
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
    """One generation. Times are Unix times in seconds.

    Attributes:
        number: Sequence number, in order of acceptance.
        id: Id of the generation.
        owner: Name of the token that created it.
        request_id: Idempotency key, a UUID; unique per owner.
        digest: Digest of the options and of the files.
        options: Serialised GenerateOptions.
        state: Lifecycle state.
        attempts: Number of starts that count as attempts; see `Store.requeue`.
        created_s: Time of acceptance.
        started_s: Time of the latest start.
        ended_s: Time at which it ended.
        result: Serialised Generation if it succeeded, google.rpc.Status if it failed.
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
        """Whether the state is final."""
        return self.state not in ("queued", "running")


class Store:
    """The database file.

    Args:
        path: Path of the file, which is created if it does not exist.

    Raises:
        OutputError: The file cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        connection = None
        try:
            connection = self._connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=FULL")
            self._connection.executescript(_SCHEMA)
            # requeue what was running when the previous process ended
            self._connection.execute("UPDATE generations SET state = 'queued' WHERE state = 'running'")
        except sqlite3.Error as error:
            if connection:
                connection.close()
            raise OutputError(f"{path} cannot be used as a database ({error}); choose another --data") from error

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def reserve(self, id: str) -> None:
        """Record an id before its media are written, so that they can be removed if the generation is never accepted.

        Only these records determine which media are removed. The media storage is never listed for it, since it may
        contain files of other applications.
        """
        with self._transaction() as run:
            run.execute("INSERT INTO reserved (id) VALUES (?)", (id,))

    def reserved(self) -> set[str]:
        """Return the ids whose media may exist without a generation that refers to them."""
        with self._transaction() as run:
            return {id for (id,) in run.execute("SELECT id FROM reserved")}

    def release(self, id: str) -> None:
        """Delete the record of an id whose media have been removed."""
        with self._transaction() as run:
            run.execute("DELETE FROM reserved WHERE id = ?", (id,))

    def add(self, id: str, owner: str, request_id: str, digest: str, options: bytes) -> Row:
        """Add a queued generation and release the reservation of `id`.

        Returns:
            The new row, or the existing one if `owner` has used `request_id` before; `id` then stays reserved.
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
        """Return the generation `id` if it belongs to `owner`."""
        with self._transaction() as run:
            return _one(run.execute(f"SELECT {_COLUMNS} FROM generations WHERE owner = ? AND id = ?", (owner, id)))

    def find_request(self, owner: str, request_id: str) -> Row | None:
        """Return the generation of `owner` with this `request_id`."""
        with self._transaction() as run:
            query = f"SELECT {_COLUMNS} FROM generations WHERE owner = ? AND request_id = ?"
            return _one(run.execute(query, (owner, request_id)))

    def by_id(self, id: str) -> Row | None:
        """Return the generation `id` of any owner."""
        with self._transaction() as run:
            return _one(run.execute(f"SELECT {_COLUMNS} FROM generations WHERE id = ?", (id,)))

    def page(self, owner: str, before: int, count: int) -> list[Row]:
        """Return up to `count` generations of `owner` with numbers below `before`, newest first."""
        with self._transaction() as run:
            query = f"SELECT {_COLUMNS} FROM generations WHERE owner = ? AND number < ? ORDER BY number DESC LIMIT ?"
            return [Row(*values) for values in run.execute(query, (owner, before, count))]

    def claim(self) -> Row | None:
        """Mark the oldest queued generation as running, and return it; None if none is queued."""
        with self._transaction() as run:
            return _one(
                run.execute(
                    "UPDATE generations SET state = 'running', attempts = attempts + 1, started_s = ? "
                    "WHERE number = (SELECT min(number) FROM generations WHERE state = 'queued') "
                    f"RETURNING {_COLUMNS}",
                    (time.time(),),
                )
            )

    def requeue(self, id: str, counts: bool) -> None:
        """Requeue a running generation.

        Args:
            id: Id of the generation.
            counts: Whether the start counts as an attempt.
        """
        with self._transaction() as run:
            run.execute(
                "UPDATE generations SET state = 'queued', attempts = attempts - ? WHERE id = ? AND state = 'running'",
                (0 if counts else 1, id),
            )

    def end(self, id: str, state: State, result: bytes | None = None) -> bool:
        """Move a generation to a final state.

        Returns:
            Whether the state has changed: False if the generation had ended or does not exist.
        """
        with self._transaction() as run:
            changed = run.execute(
                "UPDATE generations SET state = ?, result = ?, ended_s = ? "
                "WHERE id = ? AND state IN ('queued', 'running')",
                (state, result, time.time(), id),
            )
            return changed.rowcount == 1

    def remove(self, id: str) -> None:
        """Delete a generation; reserve its id until its media are removed."""
        with self._transaction() as run:
            run.execute("DELETE FROM generations WHERE id = ?", (id,))
            run.execute("INSERT OR IGNORE INTO reserved (id) VALUES (?)", (id,))

    def expired(self, before_s: float) -> list[str]:
        """Return the ids of generations that ended before the Unix time `before_s`."""
        with self._transaction() as run:
            return [id for (id,) in run.execute("SELECT id FROM generations WHERE ended_s < ?", (before_s,))]

    def count(self, state: State) -> int:
        """Return the number of generations in `state`."""
        with self._transaction() as run:
            (number,) = run.execute("SELECT count(*) FROM generations WHERE state = ?", (state,)).fetchone()
            return int(number)

    def snapshot(self) -> dict[str, float]:
        """Return the number of queued and running generations, and the age of the oldest queued one in seconds."""
        with self._transaction() as database:
            (oldest_s,) = database.execute("SELECT min(created_s) FROM generations WHERE state = 'queued'").fetchone()
        age_s = max(0.0, time.time() - oldest_s) if oldest_s else 0.0
        return {"queued": self.count("queued"), "running": self.count("running"), "oldest_queued_s": age_s}

    def count_ahead(self, number: int) -> int:
        """Return the number of queued generations with numbers below `number`."""
        with self._transaction() as run:
            query = "SELECT count(*) FROM generations WHERE state = 'queued' AND number < ?"
            (count,) = run.execute(query, (number,)).fetchone()
            return int(count)

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
