"""Options of the gRPC channels of this project: proxies and keepalive."""

import re
from ipaddress import ip_address
from typing import Any

Option = tuple[str, Any]

NO_PROXY: Option = ("grpc.enable_http_proxy", 0)

MIN_PING_INTERVAL_MS = 10_000
"""Servers accept a keepalive ping this often; by gRPC's default, 300 s, they would close the connection."""

KEEPALIVE: list[Option] = [
    # A peer that vanished is noticed within a minute, however long a call may take.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.ping_timeout_ms", 20_000),  # 60 s by default, and it counts for pings that go along with data
    ("grpc.http2.max_pings_without_data", 0),  # by default pings become rare while a call waits for its answer
]


def channel_options(target: str) -> list[Option]:
    """Keepalive, and no proxy where `target`, `HOST:PORT`, is this machine.

    gRPC takes `http_proxy` and the like from the environment, and a proxy cannot connect to this machine's loopback.
    Proxies stay in use for other machines.
    """
    return [*KEEPALIVE, NO_PROXY] if is_this_machine(target) else [*KEEPALIVE]


def is_this_machine(target: str) -> bool:
    """Whether the host of `HOST:PORT` is `localhost`, a loopback address, or the unspecified address."""
    host = re.sub(r":\d+$", "", target).strip("[]")
    try:
        address = ip_address(host)
    except ValueError:
        return host.lower() == "localhost"
    return address.is_loopback or address.is_unspecified
