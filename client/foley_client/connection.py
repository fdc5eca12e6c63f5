"""Connects the command line to a backend: a public API, a running Triton, or a Triton started for the call."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc

from foley.container import DEFAULT_LIMITS, Limits
from foley.errors import ServerUnavailable, SettingError
from foley_client._sync.backend import ApiBackend
from foley_client.channel import Channel
from foley_client.embedded import embedded_triton
from foley_pipeline.backend import Backend
from foley_pipeline.cache import Cache, default_folder
from foley_pipeline.media_loader import in_process
from foley_pipeline.progress import Stage, StageTimer
from foley_pipeline.rms2sound import Loop
from foley_pipeline.triton import TritonClient
from foley_pipeline.triton_backend import TritonBackend

CONNECT_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class ConnectionOptions:
    """Connection options of the command line.

    Attributes:
        server: Address of a public API or a Triton; None starts a Triton.
        ca: PEM file of root certificates that replaces those of the system.
        certificate: PEM file of the client certificate.
        key: PEM file of the private key of `certificate`.
        bundle: Bundle of a started Triton; None for the default.
        no_cache: Whether to bypass the cache of envelopes and embeddings, with a Triton.
        loop: Where the diffusion loop runs, with a Triton.
        limits: Limits on files that are decoded on this machine.

    Raises:
        SettingError: Options exclude each other.
    """

    server: str | None
    ca: Path | None
    certificate: Path | None
    key: Path | None
    bundle: Path | None
    no_cache: bool
    loop: Loop = "client"
    limits: Limits = DEFAULT_LIMITS

    def __post_init__(self) -> None:
        if self.server is not None and self.bundle is not None:
            raise SettingError("--bundle applies to a server that is started; leave out --bundle or --server")
        if (self.ca or self.certificate or self.key) and not (self.server or "").startswith("grpcs://"):
            raise SettingError("certificates apply to servers with TLS; use --server grpcs://HOST, or leave them out")


@contextmanager
def connect(options: ConnectionOptions, timer: StageTimer) -> Iterator[Backend]:
    """Connect to the given server, or start one.

    Yields:
        The backend.

    Raises:
        ServerUnavailable: The server does not respond, does not accept work, or cannot be started.
    """
    with ExitStack() as stack:
        with timer.stage(Stage.CONNECT if options.server else Stage.START_SERVER):
            if options.server and _is_api(options.server):
                backend: Backend = _api(options, stack)
            else:
                backend = _triton(options, stack)
        yield backend


def _api(options: ConnectionOptions, stack: ExitStack) -> ApiBackend:
    channel = Channel.from_environment(options.server, ca=options.ca, certificate=options.certificate, key=options.key)
    backend = ApiBackend(channel)
    stack.callback(backend.close)
    if not backend.serving():
        raise ServerUnavailable(f"the server at {options.server} does not accept work at the moment; try again later")
    return backend


def _triton(options: ConnectionOptions, stack: ExitStack) -> TritonBackend:
    server = TritonClient(options.server) if options.server else embedded_triton(options.bundle)
    folder = None if options.no_cache else default_folder()
    cache = Cache(folder) if folder else None
    return TritonBackend(stack.enter_context(server), cache=cache, loader=in_process(options.limits), loop=options.loop)


def _is_api(server: str) -> bool:
    """Return whether `server` is a public API.

    Every server with TLS is one. Without TLS, a public API rejects a call of Triton's service.
    """
    if server.startswith("grpcs://"):
        return True
    try:
        channel = Channel(f"grpc://{server.removeprefix('grpc://')}").open()
    except SettingError:
        return False  # connecting reports the invalid address
    with channel:
        try:
            live = channel.unary_unary("/inference.GRPCInferenceService/ServerLive")
            live(b"", timeout=CONNECT_TIMEOUT_S, wait_for_ready=False)
        except grpc.RpcError as error:
            return error.code() in (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNAUTHENTICATED)
    return False
