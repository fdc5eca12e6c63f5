"""Signals of changed jobs: Postgres' LISTEN, or polling of a SQLite file."""

import asyncio
import logging
import sqlite3
from collections.abc import AsyncIterator
from concurrent.futures import Executor

import psycopg
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from foley_server.jobs.database import CONNECT_TIMEOUT_S
from foley_server.jobs.store import CHANNEL

log = logging.getLogger(__name__)

POLL_S = 0.1  # of SQLite, which takes microseconds
SILENCE_S = 5.0  # after which everything is read again, in case a notification was lost
RECONNECT_S = 1.0


async def changes(engine: Engine, threads: Executor) -> AsyncIterator[str | None]:
    """Yield the id of each job that any process has changed, or None if an unknown number of jobs may have changed.

    Never ends, and never raises: while the database is unavailable it tries again.

    Args:
        engine: The database.
        threads: Threads for calls that block.
    """
    listen = _listen if engine.dialect.name == "postgresql" else _poll
    while True:
        yield None
        try:
            async for id in listen(engine, threads):
                yield id
        except (psycopg.Error, sqlite3.Error, SQLAlchemyError, OSError) as error:
            log.warning("no notifications from the database: %s", str(error).strip().partition("\n")[0])
        await asyncio.sleep(RECONNECT_S)


async def _listen(engine: Engine, _: Executor) -> AsyncIterator[str | None]:
    url = engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    connection = await psycopg.AsyncConnection.connect(
        url,
        autocommit=True,
        connect_timeout=CONNECT_TIMEOUT_S,
        keepalives_idle=10,
        keepalives_interval=5,
        keepalives_count=3,
    )
    async with connection:
        await connection.execute(f"LISTEN {CHANNEL}")
        while True:
            yield None
            async for notification in connection.notifies(timeout=SILENCE_S):
                yield notification.payload


async def _poll(engine: Engine, threads: Executor) -> AsyncIterator[None]:
    """Poll SQLite's `data_version`, which changes with every commit of another connection."""
    loop, seen = asyncio.get_running_loop(), None
    connection = await loop.run_in_executor(threads, engine.raw_connection)
    try:
        while True:
            rows = await loop.run_in_executor(threads, _data_version, connection.driver_connection)
            if rows != seen:
                seen = rows
                yield
            await asyncio.sleep(POLL_S)
    finally:
        connection.close()


def _data_version(connection: object) -> object:
    return connection.execute("PRAGMA data_version").fetchone()  # type: ignore[attr-defined]
