"""gRPC channels to the public API: address, TLS and authentication."""

import os
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
            raise SettingError(f"the address of the server is {self.url!r}; give it as grpcs://HOST:PORT")
        if (self.certificate is None) != (self.key is None):
            raise SettingError("a client certificate needs its private key, and vice versa; give both or neither")
        if not self.secure and (self.ca or self.certificate):
            raise SettingError("certificates need TLS; use grpcs://, or leave them out")
        if self.token and not re.fullmatch(r"[\x21-\x7e]+", self.token):
            raise SettingError("the token contains invalid characters; copy it again")

    @classmethod
    def from_environment(
        cls,
        url: str | None = None,
        *,
        token: str | None = None,
        ca: str | os.PathLike[str] | None = None,
        certificate: str | os.PathLike[str] | None = None,
        key: str | os.PathLike[str] | None = None,
    ) -> "Channel":
        """Return the settings given, and those of the environment for what is None.

        The variables are FOLEY_SERVER, FOLEY_TOKEN or FOLEY_TOKEN_FILE (a file that contains the token), and for
        servers with TLS, FOLEY_CA, FOLEY_CERTIFICATE and FOLEY_KEY.

        Raises:
            SettingError: There is no address, the token file cannot be read, or a setting is invalid.
        """
        url = url or os.environ.get("FOLEY_SERVER")
        if not url:
            raise SettingError("there is no server address; give it as grpcs://HOST:PORT, or set $FOLEY_SERVER")
        if url.startswith("grpcs://"):  # exported variables must not break calls of servers without TLS
            ca, certificate, key = (
                given or os.environ.get(variable)
                for given, variable in ((ca, "FOLEY_CA"), (certificate, "FOLEY_CERTIFICATE"), (key, "FOLEY_KEY"))
            )
        files = (Path(path) if path else None for path in (ca, certificate, key))
        return cls(url if "://" in url else f"grpc://{url}", token or _environment_token(), *files)

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


def _environment_token() -> str | None:
    if token := os.environ.get("FOLEY_TOKEN"):
        return token
    if name := os.environ.get("FOLEY_TOKEN_FILE"):
        try:
            return Path(name).read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingError(f"the token file {name} cannot be read; check $FOLEY_TOKEN_FILE") from error
    return None
