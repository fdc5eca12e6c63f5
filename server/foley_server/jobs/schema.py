"""Tables of the database of jobs. The migrations in `migrations` create them."""

from sqlalchemy import (
    BigInteger,
    Column,
    Double,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

metadata = MetaData()

Number = BigInteger().with_variant(Integer, "sqlite")  # SQLite generates values for INTEGER only

jobs = Table(
    "jobs",
    metadata,
    Column("number", Number, primary_key=True, autoincrement=True),
    Column("id", String(32), nullable=False, unique=True),
    Column("owner", String(64), nullable=False),
    Column("request_id", String(36)),
    Column("digest", String(129)),
    Column("kind", String(16), nullable=False),
    Column("request", LargeBinary),
    Column("trace", Text, nullable=False, server_default="{}"),
    Column("state", String(16), nullable=False),
    Column("cost", BigInteger, nullable=False, server_default="0"),
    Column("turn", BigInteger, nullable=False, server_default="0"),
    Column("bytes", BigInteger, nullable=False, server_default="0"),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("starts", Integer, nullable=False, server_default="0"),
    Column("holder", String(80)),
    Column("lease_s", Double),
    Column("caller", String(80)),
    Column("caller_s", Double),
    Column("triton", String(255)),
    Column("available_s", Double),
    Column("progress", Text),
    Column("result", LargeBinary),
    Column("created_s", Double, nullable=False),
    Column("started_s", Double),
    Column("ended_s", Double),
    Column("expires_uptime_s", Double),
    UniqueConstraint("owner", "request_id", name="jobs_owner_request_id"),
    Index("jobs_queue", "state", "turn", "number"),
    Index("jobs_owner", "owner", "state"),
    Index("jobs_holder", "holder"),
)
"""Jobs and uploads.

number: sequence number. id: UUID, hexadecimal. request_id: idempotency key of the caller. digest: of the request and its
files. kind: what to do, see `Kind`. request: serialised message. trace: W3C trace context of the caller, JSON.
cost: denoiser rows. turn: virtual finish time in the fair queue. bytes: size of the stored media. attempts: starts that
ended in a crash. starts: number of claims, which with `holder` identifies one claim (a fencing token). holder, lease_s: the
process that receives or runs the job, and the time until which it may. caller, caller_s: the process that serves the
waiting caller, likewise; both null for long-running generations. triton: name of the Triton that runs it, or is reserved
for it. available_s: time before which it is not claimed. progress: JSON, see `Progress`. Times are Unix times of the
database's clock, except for expires_uptime_s, see `service`.
"""

owners = Table(
    "owners",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("turn", BigInteger, nullable=False, server_default="0"),
    Column("rows_per_hour", Double),
    Column("spent_rows", Double, nullable=False, server_default="0"),
    Column("spent_at_s", Double, nullable=False, server_default="0"),
)
"""Share of each owner.

turn: virtual finish time of the last accepted job. rows_per_hour: budget; null: unlimited. spent_rows: used part of the
budget at the time spent_at_s.
"""

service = Table(
    "service",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("turn", BigInteger, nullable=False, server_default="0"),
    Column("uptime_s", Double, nullable=False, server_default="0"),
    Column("clock_s", Double, nullable=False, server_default="0"),
)
"""A single row. id: identity of the service, also in its media storage. turn: virtual time of the fair queue.

uptime_s: time for which the service has run. Retention is measured with it, so that a clock that jumps expires nothing.
clock_s: time of the last update of uptime_s.
"""
