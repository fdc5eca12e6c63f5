"""The gRPC server: its services, limits for connections, and the port that it listens on."""

import resource

import grpc
from google.longrunning import operations_pb2, operations_pb2_grpc
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from foley.errors import OutputError
from foley_pipeline.api import foley_pb2 as pb
from foley_pipeline.api import foley_pb2_grpc
from foley_pipeline.grpc_options import KEEPALIVE, MIN_PING_INTERVAL_MS
from foley_server.api.certificates import Certificates
from foley_server.api.interceptor import CallInterceptor
from foley_server.api.operations import Operations
from foley_server.api.service import FoleyService
from foley_server.api.settings import Settings

SERVICES = (
    pb.DESCRIPTOR.services_by_name["FoleyService"].full_name,
    operations_pb2.DESCRIPTOR.services_by_name["Operations"].full_name,
)
MAX_MESSAGE = 4 * 2**20  # gRPC's default limit; also applies after decompression
MAX_OPEN_FILES = 65_536
MAX_CONNECTIONS = 10_000  # upper limit, see `connection_limit`; further connections are closed at once
MAX_STREAMS, MAX_CALLS = 200, 4_000  # calls of one connection, and in all; further ones wait, and are refused
HANDSHAKE_TIMEOUT_MS = 20_000  # for TLS and the first message of HTTP/2: connections that send nothing are closed
IDLE_TIMEOUT_MS = 5 * 60_000  # for connections without calls
MAX_AGE_MS = 30 * 60_000  # clients then connect again, which spreads them over the servers behind a load balancer


def grpc_server(
    settings: Settings,
    interceptor: CallInterceptor,
    health_service: health.aio.HealthServicer,
    service: FoleyService,
    operations: Operations,
) -> grpc.aio.Server:
    """Return the server with all of its services; `listen` opens its port."""
    server = grpc.aio.server(interceptors=[interceptor], options=options(settings), maximum_concurrent_rpcs=MAX_CALLS)
    foley_pb2_grpc.add_FoleyServiceServicer_to_server(service, server)
    operations_pb2_grpc.add_OperationsServicer_to_server(operations, server)
    health_pb2_grpc.add_HealthServicer_to_server(health_service, server)
    reflection.enable_server_reflection((*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    return server


def options(settings: Settings) -> list[tuple[str, int]]:
    """Return the options of the server: limits for messages and connections."""
    longest_call_s = settings.upload_timeout + settings.request_timeout
    return [
        ("grpc.max_receive_message_length", MAX_MESSAGE),
        ("grpc.max_metadata_size", 16 * 1024),
        ("grpc.max_concurrent_streams", MAX_STREAMS),
        ("grpc.max_allowed_incoming_connections", connection_limit()),
        ("grpc.server_handshake_timeout_ms", HANDSHAKE_TIMEOUT_MS),
        ("grpc.max_connection_idle_ms", IDLE_TIMEOUT_MS),
        ("grpc.max_connection_age_ms", MAX_AGE_MS),
        ("grpc.max_connection_age_grace_ms", round(longest_call_s * 1000)),
        *KEEPALIVE,
        ("grpc.http2.min_ping_interval_without_data_ms", MIN_PING_INTERVAL_MS),
        ("grpc.so_reuseport", 0),  # fail if another server uses the port
    ]


def connection_limit() -> int:
    """Raise the soft limit of open files, and return the maximum number of connections.

    Half of the descriptors are left for everything else. The soft limit is raised to `MAX_OPEN_FILES` at most: some
    container runtimes set a hard limit of a billion or none, for which programs may allocate or loop.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    return min(MAX_CONNECTIONS, allowed // 2)


def listen(server: grpc.aio.Server, address: str, port: int, certificates: Certificates | None) -> int:
    """Open a port of the server, with TLS if there are certificates; return its number.

    Raises:
        OutputError: The port is in use, or the address does not belong to this machine.
    """
    endpoint = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    try:
        if certificates:
            opened = server.add_secure_port(endpoint, certificates.grpc_credentials())
        else:
            opened = server.add_insecure_port(endpoint)
    except RuntimeError as error:
        raise OutputError(f"cannot listen on {endpoint}; choose another address or port") from error
    if not opened:
        raise OutputError(f"cannot listen on {endpoint}; choose another address or port")
    return int(opened)
