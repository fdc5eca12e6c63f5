"""Runs the migrations on the connection that `foley_server.jobs.database` provides."""

from alembic import context

from foley_server.jobs.schema import metadata

LOCK = 0x666F6C6579  # of processes that start at the same time

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=metadata, transactional_ddl=True)
with context.begin_transaction():
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({LOCK})")
    context.run_migrations()
