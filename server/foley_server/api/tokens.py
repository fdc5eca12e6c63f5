"""Bearer tokens: a TOML file of their hashes, scopes and rate limits.

[tokens.alice]
sha256 = "..."              # of the token; the token itself is not stored
scopes = ["generate", "read"]
requests_per_minute = 60
concurrent_requests = 4
"""

import hashlib
import json
import logging
import secrets
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from foley.errors import Forbidden, RateLimited, SettingError, Unauthenticated

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Scope = Literal["generate", "read"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
MAX_TOKEN_LENGTH = 512  # characters

log = logging.getLogger(__name__)


class TokenEntry(BaseModel):
    """Permissions and limits of a token.

    Attributes:
        sha256: SHA-256 of the token, hexadecimal.
        scopes: Scopes that the token grants.
        requests_per_minute: Rate limit; also the capacity of the token bucket.
        concurrent_requests: Maximum number of calls in progress.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    scopes: tuple[Scope, ...] = SCOPES
    requests_per_minute: Annotated[float, Field(gt=0)] = 60
    concurrent_requests: Annotated[int, Field(ge=1)] = 4


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    tokens: dict[Annotated[str, Field(pattern=r"^[\w.-]{1,64}$")], TokenEntry] = {}


class Principal:
    """An authenticated caller, with the state of its rate limit (a token bucket)."""

    def __init__(self, name: str, entry: TokenEntry | None) -> None:
        self.name = name
        self.entry = entry  # None: anonymous, without limits
        self._active = 0
        self._available = entry.requests_per_minute if entry else 0.0
        self._refilled_at = time.monotonic()

    def check(self, scope: Scope | None) -> None:
        """Check that the token has `scope`.

        Raises:
            Forbidden: The token lacks the scope.
        """
        if self.entry and scope and scope not in self.entry.scopes:
            raise Forbidden(f"the token {self.name!r} lacks the scope {scope!r}; use one that has it")

    @contextmanager
    def acquire(self) -> Iterator[None]:
        """Count one request against the limits; it is in progress while the context is active.

        Raises:
            RateLimited: The token's rate limit or its limit of concurrent requests is reached.
        """
        if self.entry is None:
            yield
            return
        per_second = self.entry.requests_per_minute / 60
        now = time.monotonic()
        self._available = min(self.entry.requests_per_minute, self._available + (now - self._refilled_at) * per_second)
        self._refilled_at = now
        if self._active >= self.entry.concurrent_requests:
            raise _limited(f"the token is at its limit of {self.entry.concurrent_requests} concurrent requests", 1.0)
        if self._available < 1:
            wait_s = (1 - self._available) / per_second
            raise _limited(f"the token is at its limit of {self.entry.requests_per_minute:g} requests a minute", wait_s)
        self._available -= 1
        self._active += 1
        try:
            yield
        finally:
            self._active -= 1


class Tokens:
    """The tokens in a file, reloaded when it changes. Without a file, every call is allowed.

    Args:
        path: TOML file of tokens, or None.

    Raises:
        SettingError: The file is not a valid file of tokens.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._version: tuple[int, ...] = ()
        self._principals: dict[str, Principal] = {}
        self._anonymous = Principal("everyone", None)
        if path:
            self._read(path)

    def principal(self, authorization: str | None) -> Principal:
        """Return the caller for the value of the `authorization` metadata.

        Raises:
            Unauthenticated: The token is missing or unknown.
        """
        if self._path is None:
            return self._anonymous
        self._refresh(self._path)
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not token or len(token) > MAX_TOKEN_LENGTH:
            raise Unauthenticated("a token is required; set $FOLEY_TOKEN, or send `authorization: Bearer TOKEN`")
        principal = self._principals.get(sha256(token))
        if principal is None:
            raise Unauthenticated("the token is not valid; ask the server's operator for one")
        return principal

    def _refresh(self, path: Path) -> None:
        try:
            if _version(path) != self._version:
                self._read(path)
                log.info("tokens reloaded")
        except (OSError, SettingError) as error:
            log.error("tokens cannot be reloaded, the previous ones stay valid: %s", error)

    def _read(self, path: Path) -> None:
        version = _version(path)
        try:
            file = _File.model_validate(tomllib.loads(path.read_text()))
        except (ValueError, ValidationError) as error:
            raise SettingError(
                f"{path} is not a valid token file ({error}); see `foley-server token --help`"
            ) from error
        before = {one.name: one for one in self._principals.values()}
        self._principals = {
            entry.sha256: before[name] if name in before and before[name].entry == entry else Principal(name, entry)
            for name, entry in file.tokens.items()
        }
        self._version = version


def new_token() -> str:
    """Return a token with 256 bits of entropy, which makes it safe to store an unsalted hash of it."""
    return f"foley_{secrets.token_urlsafe(32)}"


def entry(name: str, token: str, scopes: Sequence[str], requests_per_minute: float, concurrent_requests: int) -> str:
    """Return the TOML entry of a token.

    Raises:
        SettingError: The name, a scope or a limit is not valid.
    """
    allowed = {
        "sha256": sha256(token),
        "scopes": list(scopes),
        "requests_per_minute": requests_per_minute,
        "concurrent_requests": concurrent_requests,
    }
    try:
        _File.model_validate({"tokens": {name: allowed}})
    except ValidationError as error:
        first = error.errors()[0]
        raise SettingError(f"{first['loc'][-1]}: {first['msg']}") from error
    lines = [f'[tokens."{name}"]', *(f"{key} = {json.dumps(value)}" for key, value in allowed.items())]
    return "\n".join([*lines, "", ""])


def sha256(token: str) -> str:
    """Return the hash of a token under which it is stored."""
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()


def _version(path: Path) -> tuple[int, ...]:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def _limited(message: str, retry_after_s: float) -> RateLimited:
    error = RateLimited(f"{message}; try again later")
    error.retry_after_s = retry_after_s
    return error
