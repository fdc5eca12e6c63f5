"""Settings of the API: precedence of their sources, and validation at start."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from foley.errors import SettingError
from foley_server.api.gauges import register_gauges
from foley_server.api.settings import Settings, load
from foley_server.telemetry.metrics import Metrics
from foley_server.telemetry.samples import FreeSpace, LoopLag, Snapshot

OPERATIONS = (Path(__file__).resolve().parents[2] / "docs" / "operations.md").read_text()
TLS = ("--tls-certificate", __file__, "--tls-key", __file__)


def test_flags_override_environment_and_environment_overrides_file(tmp_path, monkeypatch):
    file = tmp_path / "api.toml"
    file.write_text('running = 3\nwaiting = 3\nstored = 3\nlog_level = "debug"\n')
    monkeypatch.setenv("FOLEY_API_RUNNING", "2")
    monkeypatch.setenv("FOLEY_API_WAITING", "2")
    settings = load(["--config", str(file), "--running", "1"])
    assert (settings.running, settings.waiting, settings.stored, settings.log_level) == (1, 2, 3, "debug")
    monkeypatch.setenv("FOLEY_API_CONFIG", str(file))
    assert load([]).stored == 3


def test_defaults_are_valid_and_bind_to_loopback():
    settings = load([])
    assert settings.address == settings.metrics_address == "127.0.0.1"
    assert settings.limits.duration_s == settings.duration
    assert settings.media_location == str(settings.data / "media")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--running", "0"], "running"),
        (["--running", "many"], "running"),
        (["--port", "70000"], "port"),
        (["--grace", "-1"], "grace"),
        (["--upload-timeout", "nan"], "upload_timeout"),
        (["--trace-share", "2"], "trace_share"),
        (["--trace", "localhost"], "trace"),
        (["--log-level", "loud"], "log"),
        (["--media", "gs://bucket"], "s3://"),
        (["--tls-certificate", __file__], "tls_key"),
        (["--tls-client-ca", __file__], "tls_certificate"),
        (["--tls-certificate", "/none", "--tls-key", __file__], "/none"),
        (["--tokens", "/none"], "/none"),
        (["--address", "0.0.0.0"], "TLS"),
        (["--address", "0.0.0.0", "--anonymous"], "TLS"),
        (["--address", "0.0.0.0", "--tokens", __file__], "TLS"),
        (["--address", "0.0.0.0", "--plaintext"], "anonymous"),
        (["--address", "0.0.0.0", *TLS], "anonymous"),
        (["--studio-address", "::", *TLS], "anonymous"),
        (["--tokens", __file__, "--anonymous"], "exclude"),
        (["--config", "/none"], "/none"),
        (["--nonsense", "1"], "nonsense"),
        (["stray"], "stray"),
    ],
)
def test_invalid_setting_is_named_in_one_sentence(arguments, word):
    with pytest.raises(SettingError) as refused:
        load(arguments)
    assert word in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "access",
    [("--tokens", __file__), ("--anonymous",), ("--tls-client-ca", __file__)],
    ids=["tokens", "explicitly anonymous", "client certificates"],
)
def test_addresses_other_than_loopback_need_tls_and_an_access_rule(access):
    load(["--address", "0.0.0.0", "--studio-address", "0.0.0.0", *TLS, *access])


@pytest.mark.parametrize("access", [("--tokens", __file__), ("--anonymous",)])
def test_proxy_may_terminate_tls(access):
    load(["--address", "0.0.0.0", "--plaintext", *access])


@pytest.mark.parametrize("content", ["running = 0", "nonsense = 1", "not toml ["])
def test_config_file_is_validated(tmp_path, content):
    (tmp_path / "api.toml").write_text(content)
    with pytest.raises(SettingError):
        load(["--config", str(tmp_path / "api.toml")])


def test_all_invalid_settings_are_reported_together():
    with pytest.raises(SettingError) as refused:
        load(["--running", "0", "--waiting", "-1"])
    assert {"running", "waiting"} <= set(re.findall(r"\w+", str(refused.value)))


def test_help_describes_every_setting(capsys):
    with pytest.raises(SystemExit) as end:
        load(["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    for name, field in Settings.model_fields.items():
        assert f"--{name.replace('_', '-')}" in text
        assert field.description


def test_operations_page_lists_every_setting_and_metric(tmp_path):
    for name in Settings.model_fields:
        assert f"`--{name.replace('_', '-')}`" in OPERATIONS, name
    metrics = Metrics()
    jobs, space = Snapshot("jobs", NotImplemented), FreeSpace(tmp_path)
    space.close()
    calls = SimpleNamespace(calls=0, tritons=SimpleNamespace(statuses={}))
    workers = SimpleNamespace(active=0)
    register_gauges(metrics, load([]), calls, workers, jobs, LoopLag(), space, "strict")
    names = {family.name for family in metrics.registry.collect()}
    assert "foley_api_limit" in names
    for name in names:
        assert f"`{name}" in OPERATIONS, name
