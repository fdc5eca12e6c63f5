"""The alerts, tested with promtool, and Prometheus' configuration."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "deploy" / "chart" / "alerts.yml"
CASES = ROOT / "tests" / "unit" / "alerts.yml"
ALERTS = [rule["alert"] for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


@pytest.fixture(scope="module")
def promtool() -> str:
    """Prometheus' own tool; `.ci/run` installs it, and elsewhere the tests are skipped without it."""
    if not (tool := shutil.which("promtool")):
        stop = pytest.fail if os.environ.get("CI") else pytest.skip
        stop("there is no promtool; install Debian's package prometheus")
    return tool


def test_alerts_fire_when_they_should(promtool: str) -> None:
    result = subprocess.run([promtool, "test", "rules", CASES], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def changed_cases(promtool: str, folder: Path, alerts: list[str], expression: str) -> str:
    """Return what promtool says about the cases, of which at least one must fail, if `alerts` have this expression."""
    rules, cases = yaml.safe_load(RULES.read_text()), yaml.safe_load(CASES.read_text())
    for rule in (rule for group in rules["groups"] for rule in group["rules"] if rule["alert"] in alerts):
        rule["expr"] = expression
    (folder / "rules.yml").write_text(yaml.safe_dump(rules))
    (folder / "cases.yml").write_text(yaml.safe_dump({**cases, "rule_files": ["rules.yml"]}))
    command = [promtool, "test", "rules", folder / "cases.yml"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    return result.stdout + result.stderr


def test_cases_fail_if_alerts_never_fire(promtool: str, tmp_path: Path) -> None:
    output = changed_cases(promtool, tmp_path, ALERTS, "vector(0) > 1")
    assert all(alert in output for alert in ALERTS)  # as expected and missing


@pytest.mark.parametrize("alert", ALERTS)
def test_cases_fail_if_an_alert_always_fires(promtool: str, alert: str, tmp_path: Path) -> None:
    assert alert in changed_cases(promtool, tmp_path, [alert], "vector(1)")


def test_prometheus_accepts_its_configuration(promtool: str) -> None:
    command = [promtool, "check", "config", ROOT / "deploy" / "prometheus.yml"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"{len(ALERTS)} rules found" in result.stdout
