"""Connections to the database of jobs, SQLite or Postgres, and its migrations."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import psutil
from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, InterfaceError, OperationalError, SQLAlchemyError, TimeoutError

from foley.errors import DatabaseUnavailable, OutputError, SettingError

CONNECTIONS = 8  # for calls; also the number of their threads
OWN_CONNECTIONS = 4  # for leases, claims and outcomes, which must not wait for calls
TIMEOUT_S = 10.0  # of a connection from the pool, of a statement, and of a lock
CONNECT_TIMEOUT_S = 5
RETRY_AFTER_S = 5.0
NETWORK_FILE_SYSTEMS = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "lustre", "gpfs", "beegfs", "ocfs2"}
)
"""Types of file systems that several machines share; those in user space start with `fuse.`, such as `fuse.sshfs`."""


def connect(url: str) -> Engine:
    """Return an engine for `sqlite:///PATH` or `postgresql://…`, with its schema migrated to this version.

    Raises:
        SettingError: The URL is malformed or names another database.
        OutputError: The database cannot be used; the message says why.
    """
    parsed = _parse(url)
    engine = _sqlite(parsed) if parsed.get_backend_name() == "sqlite" else _postgres(parsed)
    try:
        _migrate(engine)
    except (SQLAlchemyError, CommandError) as error:
        engine.dispose()
        name = parsed.render_as_string(hide_password=True)
        raise OutputError(f"{name} cannot be used as a database ({_reason(error)}); choose another --store") from error
    return engine


@contextmanager
def transaction(engine: Engine, write: bool) -> Iterator[Connection]:
    """Open a transaction, which is committed when the block ends without an error.

    Args:
        engine: The database.
        write: Whether the block writes. SQLite then takes its lock at the start: a transaction that began with a read
            cannot wait for it.

    Raises:
        DatabaseUnavailable: The database cannot be reached or written; `retry_after_s` is set.
    """
    try:
        with engine.connect().execution_options(foley_write=write) as connection, connection.begin():
            yield connection
    except (OperationalError, InterfaceError, TimeoutError) as error:
        unavailable = DatabaseUnavailable("the database is unavailable; try again later")
        unavailable.retry_after_s = RETRY_AFTER_S
        raise unavailable from error


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as error:
        raise SettingError("the store is not a URL; use sqlite:///PATH or postgresql://USER@HOST/DATABASE") from error
    if parsed.drivername in ("postgresql", "postgres"):
        parsed = parsed.set(drivername="postgresql+psycopg")
    if (parsed.drivername == "sqlite" and parsed.database) or parsed.drivername == "postgresql+psycopg":
        return parsed
    raise SettingError(f"the store {parsed.drivername!r} is not supported; use sqlite:///PATH or postgresql://…")


def _postgres(url: URL) -> Engine:
    milliseconds = round(TIMEOUT_S * 1000)
    limits = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
    return create_engine(
        url,
        pool_size=CONNECTIONS + OWN_CONNECTIONS,
        max_overflow=0,
        pool_timeout=TIMEOUT_S,
        pool_pre_ping=True,
        connect_args={
            "connect_timeout": CONNECT_TIMEOUT_S,
            "options": " ".join(f"-c {name}={milliseconds}" for name in limits),
            "tcp_user_timeout": milliseconds,
        },
    )


def _sqlite(url: URL) -> Engine:
    path = Path(url.database or "").absolute()
    kind = file_system(path)
    if kind in NETWORK_FILE_SYSTEMS or kind.startswith("fuse."):
        raise OutputError(
            f"{path} is on a network file system ({kind}), where SQLite can lose data; "
            "choose a local folder for --data or --store, or a --store postgresql://…"
        )
    engine = create_engine(
        url,
        pool_size=CONNECTIONS + OWN_CONNECTIONS,
        max_overflow=0,
        pool_timeout=TIMEOUT_S,
        connect_args={"timeout": TIMEOUT_S, "isolation_level": None},  # the listener begins transactions
    )

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _: object) -> None:
        for pragma in ("journal_mode=WAL", "synchronous=FULL"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        write = connection.get_execution_options().get("foley_write", True)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    return engine


def file_system(path: Path) -> str:
    """Return the type of the file system that holds `path`, such as "ext4"; "" if it is unknown."""
    mounts = {one.mountpoint: one.fstype for one in psutil.disk_partitions(all=True)}
    real = Path(os.path.realpath(path))
    return next((mounts[str(one)] for one in (real, *real.parents) if str(one) in mounts), "").lower()


def _migrate(engine: Engine) -> None:
    config = Config()
    config.set_main_option("script_location", str(files("foley_server.jobs") / "migrations"))
    with engine.connect() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def _reason(error: Exception) -> str:
    """Return the database's own message in one line; SQLAlchemy's has the statement, too."""
    return str(getattr(error, "orig", None) or error).strip().partition("\n")[0]
