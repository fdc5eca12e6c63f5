"""Backends of the command line: a public API, a running Triton, or a Triton started for the call."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import grpc

from foley.envelope import Floats
from foley.errors import ServerUnavailable, SettingError
from foley.options import OpticalFlow
from foley_client.api import FoleyClient
from foley_client.channel import Channel
from foley_client.console import ProgressWatch
from foley_client.embedded import embedded_triton
from foley_pipeline import cache
from foley_pipeline.foley import Foley
from foley_pipeline.job import Job, Sound, run
from foley_pipeline.rms2sound import Loop
from foley_pipeline.triton import Triton
from foley_pipeline.watch import Watch

CONNECT_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Where:
    """Connection options of the command line.

    Attributes:
        server: Address of a public API or a Triton; None starts a Triton.
        ca: PEM file of root certificates that replaces those of the system.
        certificate: PEM file of the client certificate.
        key: PEM file of the private key of `certificate`.
        bundle: Bundle of a started Triton; None for the default.
        no_cache: Whether to bypass the cache of envelopes and embeddings.

    Raises:
        SettingError: Options exclude each other.
    """

    server: str | None
    ca: Path | None
    certificate: Path | None
    key: Path | None
    bundle: Path | None
    no_cache: bool

    def __post_init__(self) -> None:
        if self.server is not None and self.bundle is not None:
            raise SettingError("--bundle is for a server that is started for the call; leave out --bundle or --server")
        if (self.ca or self.certificate or self.key) and not (self.server or "").startswith("grpcs://"):
            raise SettingError("certificates are for a public API; give --server grpcs://HOST, or leave them out")


class Maker(Protocol):
    """Backend that predicts envelopes and generates sounds."""

    def generate(self, job: Job, watch: Watch, loop: Loop) -> Sound:
        """Generate sound for `job`; `loop` selects where the diffusion loop runs, if the backend has a choice."""

    def predict_envelope(self, video: Path, watch: Watch, flow: OpticalFlow | None) -> Floats:
        """Return the predicted envelope [frames at 100 Hz] of a video."""


@dataclass(frozen=True)
class OnTriton:
    """Backend that runs both stages from this process on a Triton server."""

    foley: Foley

    def generate(self, job: Job, watch: Watch, loop: Loop) -> Sound:
        """See `foley_pipeline.job.run`."""
        return run(self.foley, job, watch, loop)

    def predict_envelope(self, video: Path, watch: Watch, flow: OpticalFlow | None) -> Floats:
        """See `Foley.predict_envelope`."""
        return self.foley.predict_envelope(video, watch, flow or "default")


@dataclass(frozen=True)
class OnApi:
    """Backend that delegates to a public API."""

    client: FoleyClient

    def generate(self, job: Job, watch: Watch, loop: Loop) -> Sound:
        """See `FoleyClient.generate`; `loop` is ignored."""
        return self.client.generate(job, watch)

    def predict_envelope(self, video: Path, watch: Watch, flow: OpticalFlow | None) -> Floats:
        """See `FoleyClient.predict_envelope`."""
        return self.client.predict_envelope(video, flow, watch)


@contextmanager
def session(where: Where) -> Iterator[tuple[Maker, Watch]]:
    """Connect to the given server, or start one, and show progress.

    Yields:
        The backend and the watch to pass to it.

    Raises:
        ServerUnavailable: The server does not respond, does not accept work, or cannot be started.
    """
    with ExitStack() as stack:
        watch = stack.enter_context(ProgressWatch())
        with watch.stage("connecting" if where.server else "starting the server"):
            maker = _api(where, stack) if where.server and _is_api(where.server) else _triton(where, stack)
        yield maker, watch


def _api(where: Where, stack: ExitStack) -> OnApi:
    url = where.server if "://" in str(where.server) else f"grpc://{where.server}"
    ca, certificate, key = where.ca, where.certificate, where.key
    if str(url).startswith("grpcs://"):  # exported variables must not break calls of servers without TLS
        ca, certificate, key = (
            ca or _path("FOLEY_CA"),
            certificate or _path("FOLEY_CERTIFICATE"),
            key or _path("FOLEY_KEY"),
        )
    client = stack.enter_context(FoleyClient(str(url), token=_token(), ca=ca, certificate=certificate, key=key))
    if not client.serving():
        raise ServerUnavailable(f"the server at {where.server} takes no work now; try again in a while")
    return OnApi(client)


def _triton(where: Where, stack: ExitStack) -> OnTriton:
    triton = stack.enter_context(embedded_triton(where.bundle) if where.server is None else Triton(where.server))
    folder = None if where.no_cache else cache.default_folder()
    return OnTriton(Foley(triton, cache.Cache(folder) if folder else None))


def _path(variable: str) -> Path | None:
    value = os.environ.get(variable)
    return Path(value) if value else None


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


def _token() -> str | None:
    """Return the token in `$FOLEY_TOKEN`, or in the file named by `$FOLEY_TOKEN_FILE`, or None."""
    if token := os.environ.get("FOLEY_TOKEN"):
        return token
    if name := os.environ.get("FOLEY_TOKEN_FILE"):
        try:
            return Path(name).read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingError(f"the token file {name} cannot be read; check $FOLEY_TOKEN_FILE") from error
    return None
