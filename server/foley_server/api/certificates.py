"""The server's certificates, which are reloaded when their files change."""

import logging
import ssl
import threading
from dataclasses import dataclass
from pathlib import Path

import grpc

from foley.errors import SettingError
from foley_server.api.file_version import file_version
from foley_server.api.settings import Settings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Loaded:
    grpc: grpc.ServerCertificateConfiguration
    ssl: ssl.SSLContext


class Certificates:
    """Certificate chain, key and client CA of the server, for gRPC and for asyncio servers. Thread-safe.

    Each new connection uses the files as they are then; existing connections continue. If the new files are not valid,
    for example because only one of a pair has been replaced so far, an error is logged and the previous ones are used.

    Args:
        certificate: Certificate chain of the server, PEM.
        key: Private key of the certificate, PEM, not encrypted.
        client_ca: CA of client certificates, PEM; None: clients need no certificate.

    Raises:
        SettingError: A file is missing or not valid, or the key does not belong to the certificate.
    """

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None) -> None:
        self._certificate, self._key, self._client_ca = certificate, key, client_ca
        self._lock = threading.Lock()  # gRPC asks from its own threads
        self._version = self._find_version()
        self._loaded = self._load()

    @classmethod
    def of(cls, settings: Settings) -> "Certificates | None":
        """Return the certificates that the settings name; None without TLS.

        Raises:
            SettingError: They cannot be used.
        """
        if settings.tls_certificate is None or settings.tls_key is None:
            return None
        return cls(settings.tls_certificate, settings.tls_key, settings.tls_client_ca)

    def grpc_credentials(self) -> grpc.ServerCredentials:
        """Return credentials for a secure port of a gRPC server."""
        given = self._current()

        def changed() -> grpc.ServerCertificateConfiguration | None:
            nonlocal given
            latest = self._current()
            if latest is given:
                return None
            given = latest
            return latest.grpc

        return grpc.dynamic_ssl_server_credentials(
            given.grpc, changed, require_client_authentication=self._client_ca is not None
        )

    def ssl_context(self) -> ssl.SSLContext:
        """Return a context for an asyncio server."""
        listening = self._load().ssl

        def switch(connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
            connection.context = self._current().ssl  # also replaces the CA, to which a context can only add

        listening.sni_callback = switch  # OpenSSL calls it even if the client sends no name
        return listening

    def _current(self) -> _Loaded:
        with self._lock:
            version = self._find_version()
            if version != self._version:
                self._version = version
                try:
                    self._loaded = self._load()
                    log.info("certificates reloaded")
                except SettingError as error:
                    log.error("certificates cannot be reloaded, the previous ones stay in use: %s", error)
            return self._loaded

    def _find_version(self) -> tuple[tuple[int, ...], ...] | None:
        try:
            return tuple(
                file_version(path) for path in (self._certificate, self._key, self._client_ca) if path is not None
            )
        except OSError:  # `_load` reports it
            return None

    def _load(self) -> _Loaded:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.set_alpn_protocols(["http/1.1"])
        context.num_tickets = 0  # a resumed session would skip the check of the client certificate
        context.options |= ssl.OP_NO_TICKET
        try:
            context.load_cert_chain(self._certificate, self._key, password="")  # never ask for one on the terminal
            if self._client_ca:
                context.load_verify_locations(self._client_ca)
                context.verify_mode = ssl.CERT_REQUIRED
            configuration = grpc.ssl_server_certificate_configuration(
                [(self._key.read_bytes(), self._certificate.read_bytes())],
                self._client_ca.read_bytes() if self._client_ca else None,
            )
        except OSError as error:  # includes ssl.SSLError
            files = ", ".join(str(path) for path in (self._certificate, self._key, self._client_ca) if path)
            raise SettingError(f"the certificates {files} cannot be used ({error}); check the files") from error
        return _Loaded(configuration, context)
