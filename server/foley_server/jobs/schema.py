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
    Column("size_bytes", BigInteger, nullable=False, server_default="0"),
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
    Index("jobs_lease", "lease_s"),
    Index("jobs_caller_lease", "caller_s"),
    Index("jobs_expiry", "expires_uptime_s"),
    Index("jobs_quota", "state", "owner", "size_bytes", "created_s"),
)
"""Jobs and uploads.

    number              sequence number
    id                  UUID, hexadecimal
    request_id          idempotency key of the caller
    digest              SHA-256 of the request and of its files
    kind                what to do, see `store.Kind`
    request             serialised message
    trace               W3C trace context of the caller, JSON
    cost                denoiser rows
    turn                virtual finish time in the fair queue
    size_bytes          size of the stored media
    attempts            starts that ended in a crash
    starts              number of claims; identifies a claim together with `holder` (a fencing token)
    holder, lease_s     process that receives or runs the job, and the time until which it may
    caller, caller_s    process that serves the waiting caller, likewise; null for long-running generations
    triton              name of the Triton that runs it, or is reserved for it
    available_s         time before which it is not claimed
    progress            JSON, see `Progress`
    result              serialised response, or google.rpc.Status
    expires_uptime_s    uptime of the service at which it is removed, see `service`

Other times are Unix times of the database's clock.
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
