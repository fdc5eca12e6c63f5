"""gRPC channels to the public API: address, TLS and authentication."""

import re
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from foley.errors import SettingError
from foley_pipeline.grpc_options import Option, channel_options

OPTIONS: list[Option] = [
    ("grpc.max_receive_message_length", 16 * 2**20),
    ("grpc.enable_retries", 0),  # only the server's RetryInfo marks a call retryable
]
_ADDRESS = r"([\w.-]+|\[[\da-fA-F:]+\])(:\d{1,5})?"


@dataclass(frozen=True)
class Channel:
    """Connection settings of a server.

    Attributes:
        url: `grpcs://HOST[:PORT]` with TLS, port 443 by default, or `grpc://HOST[:PORT]` without, port 8080.
        token: Bearer token. Do not pass it on a command line, where every process on the machine can read it.
        ca: PEM file of root certificates that replaces those of the system.
        certificate: PEM file of the client certificate for mutual TLS; requires `key`.
        key: PEM file of the private key of `certificate`.

    Raises:
        SettingError: `url` has another form, only one of `certificate` and `key` is given, certificates are given
            without TLS, or the token contains invalid characters.
    """

    url: str
    token: str | None = field(default=None, repr=False)
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(rf"grpcs?://{_ADDRESS}", self.url):
            raise SettingError(f"the server is given as {self.url!r}; give it as grpcs://HOST:PORT")
        if (self.certificate is None) != (self.key is None):
            raise SettingError("a certificate needs its key, and a key its certificate; give both or neither")
        if not self.secure and (self.ca or self.certificate):
            raise SettingError("certificates are for grpcs://; use it, or leave them out")
        if self.token and not re.fullmatch(r"[\x21-\x7e]+", self.token):
            raise SettingError("the token holds characters that no token has; copy it again")

    @property
    def secure(self) -> bool:
        """Whether the connection uses TLS."""
        return self.url.startswith("grpcs://")

    @property
    def target(self) -> str:
        """The gRPC target `HOST:PORT`."""
        address = self.url.split("://", 1)[1]
        return address if re.search(r":\d+$", address) else f"{address}:{443 if self.secure else 8080}"

    @property
    def metadata(self) -> list[tuple[str, str]]:
        """The metadata of every call: the authorization header, if there is a token."""
        return [("authorization", f"Bearer {self.token}")] if self.token else []

    def open(self) -> grpc.Channel:
        """Return a channel, which connects on the first call.

        Raises:
            SettingError: A certificate file cannot be read.
        """
        if self.secure:
            return grpc.secure_channel(self.target, self._credentials(), self._options)
        return grpc.insecure_channel(self.target, self._options)

    def open_async(self) -> grpc.aio.Channel:
        """Return a channel for asyncio; see `open`."""
        if self.secure:
            return grpc.aio.secure_channel(self.target, self._credentials(), self._options)
        return grpc.aio.insecure_channel(self.target, self._options)

    @property
    def _options(self) -> list[Option]:
        return [*OPTIONS, *channel_options(self.target)]

    def _credentials(self) -> grpc.ChannelCredentials:
        def read(path: Path | None) -> bytes | None:
            try:
                return path.read_bytes() if path else None
            except OSError as error:
                raise SettingError(f"{path} cannot be read ({error.strerror}); check the name") from error

        return grpc.ssl_channel_credentials(read(self.ca), read(self.key), read(self.certificate))
