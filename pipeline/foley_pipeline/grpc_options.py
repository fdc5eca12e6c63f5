"""Options of this project's gRPC channels: proxies and keepalive."""

import re
from ipaddress import ip_address
from typing import Any

Option = tuple[str, Any]

NO_PROXY: Option = ("grpc.enable_http_proxy", 0)

MIN_PING_INTERVAL_MS = 10_000
"""Minimum interval of keepalive pings that servers accept; with gRPC's default, 300 s, they close the connection."""

KEEPALIVE: list[Option] = [
    # Detects a dead peer within a minute, regardless of the deadlines of the calls.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.ping_timeout_ms", 20_000),  # default: 60 s; applies to pings that are sent along with data
    ("grpc.http2.max_pings_without_data", 0),  # by default pings become infrequent while a call awaits its response
]


def channel_options(target: str) -> list[Option]:
    """Return the options of a channel to `target`, `HOST:PORT`: keepalive, and no proxy for this machine.

    gRPC reads proxies from environment variables such as `http_proxy`; a proxy cannot connect to the loopback interface
    of this machine. For other machines, proxies remain in use.
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
