"""A connection to the public API: where it is, how it is secured, who asks."""

import re
from dataclasses import dataclass
from pathlib import Path

import grpc

from foley.errors import SettingError
from foley_pipeline.grpc_options import Option, channel_options

OPTIONS: list[Option] = [
    ("grpc.max_receive_message_length", 16 * 2**20),
    ("grpc.enable_retries", 0),  # what may be tried again is the server's to say, in RetryInfo
]
_ADDRESS = r"([\w.-]+|\[[\da-fA-F:]+\])(:\d{1,5})?"


@dataclass(frozen=True)
class Channel:
    """How to reach a server.

    Attributes:
        url: `grpcs://HOST[:PORT]` with TLS, port 443 by default, or `grpc://HOST:PORT` without.
        token: bearer token. Never put one on a command line, where every process of the machine can read it.
        ca: certificates to trust, PEM, in place of the system's.
        certificate, key: PEM files that tell the server who we are, where it asks (mutual TLS).

    Raises:
        SettingError: an address of another form, half a pair of files, or TLS settings without TLS.
    """

    url: str
    token: str | None = None
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
        """Whether it goes over TLS."""
        return self.url.startswith("grpcs://")

    @property
    def target(self) -> str:
        """The address as gRPC takes it."""
        address = self.url.split("://", 1)[1]
        return address if re.search(r":\d+$", address) else f"{address}:{443 if self.secure else 8001}"

    @property
    def metadata(self) -> list[tuple[str, str]]:
        """What is sent along with every call."""
        return [("authorization", f"Bearer {self.token}")] if self.token else []

    def open(self) -> grpc.Channel:
        """Connect when the first call is made."""
        if self.secure:
            return grpc.secure_channel(self.target, self._credentials(), self._options)
        return grpc.insecure_channel(self.target, self._options)

    def open_async(self) -> grpc.aio.Channel:
        """The same for asyncio."""
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
