"""Creates the tables, and takes over the generations of the SQLite files of earlier versions."""

import uuid

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_NUMBER = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_TAKE_OVER = """
INSERT INTO jobs (number, id, owner, request_id, digest, kind, request, state, cost, attempts, starts, result,
                  created_s, started_s, ended_s, expires_uptime_s)
SELECT number, id, owner, request_id, digest, 'generate', options,
       CASE state WHEN 'running' THEN 'queued' ELSE state END, 1, attempts, 0, result,
       created_s, started_s, ended_s, CASE WHEN ended_s IS NOT NULL THEN 604800.0 END
FROM generations
"""
_TAKE_OVER_RESERVED = """
INSERT INTO jobs (id, owner, kind, state, created_s) SELECT id, '', 'generate', 'deleting', 0 FROM reserved
"""


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "jobs",
        sa.Column("number", _NUMBER, primary_key=True, autoincrement=True),
        sa.Column("id", sa.String(32), nullable=False, unique=True),
        sa.Column("owner", sa.String(64), nullable=False),
        sa.Column("request_id", sa.String(36)),
        sa.Column("digest", sa.String(129)),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("request", sa.LargeBinary),
        sa.Column("trace", sa.Text, nullable=False, server_default="{}"),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("cost", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("turn", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("size_bytes", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
        sa.Column("starts", sa.Integer, nullable=False, server_default="0"),
        sa.Column("holder", sa.String(80)),
        sa.Column("lease_s", sa.Double),
        sa.Column("caller", sa.String(80)),
        sa.Column("caller_s", sa.Double),
        sa.Column("triton", sa.String(255)),
        sa.Column("available_s", sa.Double),
        sa.Column("progress", sa.Text),
        sa.Column("result", sa.LargeBinary),
        sa.Column("created_s", sa.Double, nullable=False),
        sa.Column("started_s", sa.Double),
        sa.Column("ended_s", sa.Double),
        sa.Column("expires_uptime_s", sa.Double),
        sa.UniqueConstraint("owner", "request_id", name="jobs_owner_request_id"),
    )
    op.create_index("jobs_queue", "jobs", ["state", "turn", "number"])
    op.create_index("jobs_owner", "jobs", ["owner", "state"])
    op.create_index("jobs_lease", "jobs", ["lease_s"])
    op.create_index("jobs_caller_lease", "jobs", ["caller_s"])
    op.create_index("jobs_expiry", "jobs", ["expires_uptime_s"])
    op.create_index("jobs_quota", "jobs", ["state", "owner", "size_bytes", "created_s"])
    op.create_table(
        "owners",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("turn", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("rows_per_hour", sa.Double),
        sa.Column("spent_rows", sa.Double, nullable=False, server_default="0"),
        sa.Column("spent_at_s", sa.Double, nullable=False, server_default="0"),
    )
    service = op.create_table(
        "service",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("turn", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("uptime_s", sa.Double, nullable=False, server_default="0"),
        sa.Column("clock_s", sa.Double, nullable=False, server_default="0"),
    )
    op.bulk_insert(service, [{"id": uuid.uuid4().hex}])
    if sa.inspect(op.get_bind()).has_table("generations"):
        op.execute(_TAKE_OVER)
        op.execute(_TAKE_OVER_RESERVED)
        op.drop_table("generations")
        op.drop_table("reserved")
