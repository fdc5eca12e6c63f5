"""Bearer tokens: authentication, scopes, rate limits, and the token file, which holds no token."""

import os
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from foley.errors import FoleyError, Forbidden, OutputError, RateLimited, SettingError, Unauthenticated
from foley_server.api.tokens import SCOPES, Tokens, add_entry, entry, new_token
from foley_server.cli import app

LIMITS = {"scopes": SCOPES, "requests_per_minute": 60, "concurrent_requests": 2}


@pytest.fixture
def token():
    return new_token()


@pytest.fixture
def file(tmp_path, token):
    path = tmp_path / "tokens.toml"
    path.write_text(entry("alice", token, ["generate"], 60, 2))
    return path


def test_valid_token_is_accepted(file, token):
    principal = Tokens(file).principal(f"Bearer {token}")
    assert principal.name == "alice"
    principal.check("generate")
    principal.check(None)
    with pytest.raises(Forbidden, match="read"):
        principal.check("read")


def test_file_contains_no_token(file, token):
    assert token not in file.read_text()
    assert token.removeprefix("foley_") not in file.read_text()


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Basic {}",
        "{}",
        "Bearer {}x",
        "Bearer x{}",
        "Bearer {} ",
        "Bearer é",
        "Bearer " + "x" * 10**6,
    ],
)
def test_rejects_invalid_authorization(file, token, authorization):
    with pytest.raises(Unauthenticated):
        Tokens(file).principal(authorization and authorization.replace("{}", token))


@given(st.text())
def test_rejects_arbitrary_text(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("tokens") / "tokens.toml"
    path.write_text(entry("alice", new_token(), SCOPES, 60, 2))
    with pytest.raises(Unauthenticated):
        Tokens(path).principal(text)


def test_without_file_everything_is_allowed():
    everyone = Tokens(None).principal(None)
    for scope in SCOPES:
        everyone.check(scope)
    for _ in range(1000):
        with everyone.acquire():
            pass


def test_concurrent_calls_are_limited(file, token):
    tokens = Tokens(file)
    with tokens.principal(f"Bearer {token}").acquire(), tokens.principal(f"Bearer {token}").acquire():
        with pytest.raises(RateLimited) as refused, tokens.principal(f"Bearer {token}").acquire():
            pass
        assert refused.value.retry_after_s
    with tokens.principal(f"Bearer {token}").acquire():
        pass


def test_calls_per_minute_are_limited(file, token, monkeypatch):
    now = 1000.0
    monkeypatch.setattr("foley_server.api.tokens.time.monotonic", lambda: now)
    principal = Tokens(file).principal(f"Bearer {token}")

    def calls() -> int:
        done = 0
        try:
            while True:
                with principal.acquire():
                    done += 1
        except RateLimited as error:
            assert error.retry_after_s == pytest.approx(1.0)  # noqa: PT017
        return done

    assert calls() == 60
    now += 5.0
    assert calls() == 5
    now += 1e6
    assert calls() == 60


def test_changed_file_is_reloaded(file, token):
    tokens = Tokens(file)
    other = new_token()
    with tokens.principal(f"Bearer {token}").acquire():
        file.write_text(file.read_text() + entry("bob", other, ["read"], 1, 1))
        assert tokens.principal(f"Bearer {other}").name == "bob"
        assert tokens.principal(f"Bearer {token}")._active == 1  # calls in progress still count
    file.write_text(entry("bob", other, ["read"], 1, 1))
    with pytest.raises(Unauthenticated):
        tokens.principal(f"Bearer {token}")


@pytest.mark.parametrize("content", [b"not toml [", b"\xff\xfe", b"[tokens.x]\nsha256 = 'short'\n"])
def test_invalid_file_keeps_previous_tokens(file, token, content):
    tokens = Tokens(file)
    file.write_bytes(content)
    os.utime(file, (1, 1))
    assert tokens.principal(f"Bearer {token}").name == "alice"
    with pytest.raises(SettingError, match="token"):
        Tokens(file)


def test_deleted_file_revokes_all_tokens_until_it_is_back(file, token):
    tokens = Tokens(file)
    content = file.read_text()
    file.unlink()
    with pytest.raises(Unauthenticated):
        tokens.principal(f"Bearer {token}")
    file.write_text(content)
    assert tokens.principal(f"Bearer {token}").name == "alice"


def test_expired_token_is_rejected(file, token):
    now = datetime.now(timezone.utc).replace(microsecond=0)
    file.write_text(entry("alice", token, SCOPES, 60, 2, expires=now + timedelta(hours=1)))
    assert Tokens(file).principal(f"Bearer {token}").name == "alice"
    file.write_text(entry("alice", token, SCOPES, 60, 2, expires=now))
    with pytest.raises(Unauthenticated, match="expired at"):
        Tokens(file).principal(f"Bearer {token}")
    file.write_text(file.read_text().replace("+00:00", ""))
    with pytest.raises(SettingError, match="timezone"):
        Tokens(file)


def test_tokens_of_one_owner_overlap_during_rotation(file, token):
    tokens, second = Tokens(file), new_token()
    add_entry(file, "alice", second, scopes=SCOPES, requests_per_minute=60, concurrent_requests=2)
    first = file.read_text().index('[tokens."alice-2"]')
    assert {tokens.principal(f"Bearer {one}").name for one in (token, second)} == {"alice"}
    file.write_text(file.read_text()[first:])
    assert tokens.principal(f"Bearer {second}").name == "alice"
    with pytest.raises(Unauthenticated):
        tokens.principal(f"Bearer {token}")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('"generate"', '"everything"'),
        ("requests_per_minute = 60", "requests_per_minute = -1"),
        ("concurrent_requests = 2", "concurrent_requests = 0"),
        ("concurrent_requests = 2", "admin = true"),
        ('"alice"', '"../alice"'),
    ],
)
def test_rejects_invalid_file(file, before, after):
    text = file.read_text()
    assert before in text
    file.write_text(text.replace(before, after))
    with pytest.raises(SettingError):
        Tokens(file)


def test_budgets_are_those_of_the_entry_or_the_servers_defaults(tmp_path, token):
    path = tmp_path / "tokens.toml"
    other = new_token()
    path.write_text(
        entry("alice", token, **LIMITS, rows_per_hour=5000, queued=0, mib=7) + entry("bob", other, **LIMITS)
    )
    alice, bob = Tokens(path).principal(f"Bearer {token}"), Tokens(path).principal(f"Bearer {other}")
    everyone = Tokens(None).principal(None)
    assert (alice.rows_per_hour, alice.queued, alice.mib) == (5000, 0, 7)
    for one in (bob, everyone):
        assert (one.rows_per_hour, one.queued, one.mib) == (None, None, None)


@pytest.mark.parametrize(
    "limits", [{"rows_per_hour": 0}, {"rows_per_hour": 1.5}, {"queued": -1}, {"mib": -1}, {"mib": 10**30}]
)
def test_invalid_budget_is_rejected(token, limits):
    with pytest.raises(SettingError, match=next(iter(limits))):
        entry("alice", token, **LIMITS, **limits)


def test_invalid_file_is_reported_once(file, token, caplog):
    tokens = Tokens(file)
    file.write_text("not toml [")
    for _ in range(3):
        assert tokens.principal(f"Bearer {token}").name == "alice"
    assert len([one for one in caplog.records if "cannot be reloaded" in one.getMessage()]) == 1


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_token_command_creates_valid_token_that_only_its_owner_can_read(folder):
    for name in ("carol", "dave"):
        budget = ["--rows-per-hour", "5000", "--queued", "3", "--mib", "7"]
        result = CliRunner().invoke(app, ["token", name, "--scope", "read", "--expires-days", "1", *budget])
        assert (result.exit_code, result.stdout) == (0, f"{name}.token\n")
        token = (folder / f"{name}.token").read_text().strip()
        principal = Tokens(folder / "tokens.toml").principal(f"Bearer {token}")
        assert principal.name == name
        assert (principal.rows_per_hour, principal.queued, principal.mib) == (5000, 3, 7)
        with pytest.raises(Forbidden):
            principal.check("generate")
        assert token not in (folder / "tokens.toml").read_text()
    assert {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()} == dict.fromkeys(
        ("carol.token", "dave.token", "tokens.toml"), 0o600
    )


def test_token_command_does_not_overwrite_a_token(folder):
    (folder / "carol.token").write_text("precious")
    result = CliRunner().invoke(app, ["token", "carol"])
    assert isinstance(result.exception, OutputError)
    assert [path.name for path in folder.iterdir()] == ["carol.token"]


@pytest.mark.parametrize("arguments", [["a b"], ["carol", "--scope", "all"], ["carol", "--requests-per-minute", "0"]])
def test_token_command_rejects_invalid_arguments(folder, arguments):
    result = CliRunner().invoke(app, ["token", *arguments])
    assert isinstance(result.exception, FoleyError)
    assert not list(folder.iterdir())


def test_concurrent_commands_lose_no_entry(folder):
    owners = [f"user-{i}" for i in range(8)] + ["alice"] * 4
    with ThreadPoolExecutor(len(owners)) as pool:
        list(pool.map(lambda one: add_entry(folder / "tokens.toml", one, new_token(), **LIMITS), owners))
    assert len(Tokens(folder / "tokens.toml").names()) == len(owners)


def test_token_file_is_removed_if_its_entry_cannot_be_added(folder):
    (folder / "tokens.toml").write_text("not toml [")
    result = CliRunner().invoke(app, ["token", "carol"])
    assert isinstance(result.exception, SettingError)
    assert [path.name for path in folder.iterdir()] == ["tokens.toml"]
    assert (folder / "tokens.toml").read_text() == "not toml ["
