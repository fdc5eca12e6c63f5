"""`foley-bench compare`: its figures are whole and agree with each other. Never how fast anything is."""

import json
import subprocess
from pathlib import Path

import pytest

BIN = Path(__file__).resolve().parents[2] / ".venv" / "bin"


@pytest.mark.long
def test_compare_adds_up_and_says_what_is_scaled(tiny_bundle: Path, tmp_path: Path) -> None:
    file, page = tmp_path / "compare.json", tmp_path / "compare.html"
    command = [BIN / "foley-bench", "compare", "--bundle", tiny_bundle, "--json", file, "--report", page]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr

    report = json.loads(file.read_text())
    stages, whole = report["stages"], report["end_to_end"]
    assert set(whole["ratio"]) == set(whole["ours_s"]) == {"balanced", "fast", "classical_flow"}
    official = [stage for stage in stages if stages[stage]["official_measured"] != "-" and "_warm" not in stage]
    official = [stage for stage in official if "_dis" not in stage and "fast" not in stage]
    assert whole["official_s"] == pytest.approx(sum(stages[stage]["official_s"] for stage in official))
    assert whole["ours_s"]["balanced"] == pytest.approx(sum(stages[stage]["ours_s"] for stage in official))
    for name, ratio in whole["ratio"].items():
        assert ratio == pytest.approx(whole["official_s"] / whole["ours_s"][name])
    changed = {"fast": "optical_flow_warm", "classical_flow": "optical_flow_dis"}
    for name, flow in changed.items():
        saved = stages["optical_flow"]["ours_s"] - stages[flow]["ours_s"]
        saved += stages["denoiser"]["ours_s"] - stages["denoiser, fast"]["ours_s"] if name == "fast" else 0
        assert whole["ours_s"]["balanced"] - whole["ours_s"][name] == pytest.approx(saved)
    assert stages["optical_flow"]["official_measured"] == "12 of 299"
    assert stages["denoiser"]["official_measured"] == "8 of 200"
    assert stages["denoiser"]["ours_measured"] == "whole"
    assert "12 of 299; 32 of 300" in done.stdout
    assert "cannot be judged" in page.read_text()


def test_a_bundle_without_raft_is_refused(repository: Path) -> None:
    command = [BIN / "foley-bench", "compare", "--bundle", repository / "bundles" / "demo"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode not in (0, 1)
    assert "no RAFT" in done.stderr
