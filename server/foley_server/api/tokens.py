"""Bearer tokens: a TOML file of their hashes, scopes and rate limits.

[tokens.alice]
sha256 = "..."              # of the token; the token itself is not stored
scopes = ["generate", "read"]
requests_per_minute = 60
concurrent_requests = 4
rows_per_hour = 100_000     # of the denoiser
queued = 20                 # jobs of the owner
mib = 1024                  # stored media of the owner
expires = 2027-03-01T00:00:00Z

[tokens.alice-2]            # during a rotation, an owner has two tokens
owner = "alice"
sha256 = "..."
"""

import fcntl
import hashlib
import json
import logging
import os
import secrets
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from itertools import count
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from foley.errors import Forbidden, OutputError, RateLimited, SettingError, Unauthenticated
from foley.output import replacing
from foley_server.api.file_version import file_version

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Scope = Literal["generate", "read"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
MAX_TOKEN_LENGTH = 512  # characters
MAX_BUDGET = 10**12  # rows, jobs or MiB: unlimited in practice, and fits the integers of databases
Name = Annotated[str, Field(pattern=r"^[\w.-]{1,64}$")]

log = logging.getLogger(__name__)


class TokenEntry(BaseModel):
    """Permissions and limits of a token.

    Attributes:
        sha256: SHA-256 of the token, hexadecimal.
        owner: Owner of the generations made with the token; None: the name of the entry.
        expires: Time from which the token is refused, with a time zone; None: never.
        scopes: Scopes that the token grants.
        requests_per_minute: Rate limit; also the capacity of the token bucket.
        concurrent_requests: Maximum number of calls in progress.
        rows_per_hour: Budget of the owner in denoiser rows; None: unlimited.
        queued: Maximum number of queued jobs of the owner; None: the server's default.
        mib: Maximum MiB of stored media of the owner; None: the server's default.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    owner: Name | None = None
    expires: AwareDatetime | None = None
    scopes: tuple[Scope, ...] = SCOPES
    requests_per_minute: Annotated[float, Field(gt=0)] = 60
    concurrent_requests: Annotated[int, Field(ge=1)] = 4
    rows_per_hour: Annotated[int, Field(ge=1, le=MAX_BUDGET)] | None = None
    queued: Annotated[int, Field(ge=0, le=MAX_BUDGET)] | None = None
    mib: Annotated[int, Field(ge=0, le=MAX_BUDGET)] | None = None


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    tokens: dict[Name, TokenEntry] = {}


class Principal:
    """An authenticated caller, with the state of its rate limit (a token bucket).

    Attributes:
        name: The owner of what the caller creates.
        entry: Permissions and limits of the token; None: anonymous, without limits.
        rows_per_hour: Budget of the owner in denoiser rows; None: unlimited.
        queued: Maximum number of queued jobs of the owner.
        mib: Maximum MiB of stored media of the owner.
    """

    def __init__(self, name: str, entry: TokenEntry | None) -> None:
        self.name = name
        self.entry = entry
        self.rows_per_hour = entry.rows_per_hour if entry else None
        self.queued = entry.queued if entry else None
        self.mib = entry.mib if entry else None
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
        self._names: set[str] = set()
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
        expires = principal.entry and principal.entry.expires
        if expires and datetime.now(timezone.utc) >= expires:
            raise Unauthenticated(
                f"the token expired at {expires.isoformat()}; ask the server's operator for a new one"
            )
        return principal

    def names(self) -> set[str]:
        """Return the names of the entries."""
        return set(self._names)

    def _refresh(self, path: Path) -> None:
        try:
            if file_version(path) != self._version:
                self._read(path)
                log.info("tokens reloaded")
        except FileNotFoundError:
            if self._principals:
                log.error("%s was deleted: all tokens are revoked", path)
            self._principals, self._version = {}, ()
        except (OSError, SettingError) as error:
            log.error("tokens cannot be reloaded, the previous ones stay valid: %s", error)

    def _read(self, path: Path) -> None:
        self._version = file_version(path)  # an invalid file is reported once
        try:
            file = _File.model_validate(tomllib.loads(path.read_text()))
        except (ValueError, ValidationError) as error:
            raise SettingError(
                f"{path} is not a valid token file ({error}); see `foley-server token --help`"
            ) from error
        before = self._principals
        self._principals = {}
        for name, entry in file.tokens.items():
            known = before.get(entry.sha256)  # with the state of its limits
            is_unchanged = known is not None and known.entry == entry
            self._principals[entry.sha256] = known if known and is_unchanged else Principal(entry.owner or name, entry)
        self._names = set(file.tokens)


def new_token() -> str:
    """Return a token with 256 bits of entropy, which makes it safe to store an unsalted hash of it."""
    return f"foley_{secrets.token_urlsafe(32)}"


def entry(
    name: str,
    token: str,
    scopes: Sequence[str],
    requests_per_minute: float,
    concurrent_requests: int,
    owner: str | None = None,
    expires: datetime | None = None,
    rows_per_hour: int | None = None,
    queued: int | None = None,
    mib: int | None = None,
) -> str:
    """Return the TOML entry of a token; the arguments are those of `TokenEntry`.

    Raises:
        SettingError: The name, a scope or a limit is not valid.
    """
    values = {
        "sha256": sha256(token),
        "owner": owner,
        "expires": expires,
        "scopes": list(scopes),
        "requests_per_minute": requests_per_minute,
        "concurrent_requests": concurrent_requests,
        "rows_per_hour": rows_per_hour,
        "queued": queued,
        "mib": mib,
    }
    values = {key: value for key, value in values.items() if value is not None}
    try:
        _File.model_validate({"tokens": {name: values}})
    except ValidationError as error:
        first = error.errors()[0]
        raise SettingError(f"{first['loc'][-1]}: {first['msg']}") from error
    lines = [f'[tokens."{name}"]', *(f"{key} = {_toml(value)}" for key, value in values.items())]
    return "\n".join([*lines, "", ""])


def add_entry(path: Path, owner: str, token: str, **limits: Any) -> None:
    """Add a token to a file of tokens, which is created with mode 600 if it does not exist.

    If `owner` has tokens already, they stay valid: the new one has a name of its own, such as alice-2.

    Args:
        path: The file.
        owner: The owner of the token.
        token: The token.
        **limits: Further arguments of `entry`.

    Raises:
        SettingError: The file is not a valid file of tokens, or a value is not valid.
        OutputError: The file cannot be written.
    """
    with _locked(path.absolute().parent):  # two commands at once must not lose an entry
        content = path.read_text() if path.exists() else ""
        names = Tokens(path).names() if content else set()
        name = next(name for i in count(1) if (name := owner if i == 1 else f"{owner}-{i}") not in names)
        added = entry(name, token, owner=None if name == owner else owner, **limits)
        with replacing(path) as temporary:
            if not path.exists():
                temporary.chmod(0o600)
            temporary.write_text(content + ("\n" if content and not content.endswith("\n\n") else "") + added)


@contextmanager
def new_token_file(path: Path, token: str) -> Iterator[None]:
    """Write a token to a new file with mode 600; the file is removed if the block raises.

    Raises:
        OutputError: The file exists, or cannot be written.
    """
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except FileExistsError as error:
        raise OutputError(f"{path} exists; use another name with -o") from error
    except OSError as error:
        raise OutputError(f"cannot write {path} ({error.strerror}); use another name with -o") from error
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(f"{token}\n")
        yield
    except BaseException as error:
        path.unlink(missing_ok=True)
        if isinstance(error, OSError):  # for example a full disk
            raise OutputError(f"cannot write {path} ({error.strerror})") from error
        raise


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise OutputError(f"cannot open the folder {folder} ({error.strerror}); create it or use another") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _toml(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else json.dumps(value)


def sha256(token: str) -> str:
    """Return the hash of a token under which it is stored."""
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()


def _limited(message: str, retry_after_s: float) -> RateLimited:
    error = RateLimited(f"{message}; try again later")
    error.retry_after_s = retry_after_s
    return error
