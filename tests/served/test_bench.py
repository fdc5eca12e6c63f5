"""`foley-bench`: its figures are whole and agree with each other. Never how fast anything is."""

import json
import subprocess
from pathlib import Path

import pytest

from foley.bundle import read
from foley.stages import networks

BIN = Path(__file__).resolve().parents[2] / ".venv" / "bin"


def test_stages_reports_every_network(tiny_bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "stages.json"
    command = [BIN / "foley-bench", "stages", "--bundle", tiny_bundle, "--repeats", "1", "--json", file]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr

    report = json.loads(file.read_text())
    bundle = read(tiny_bundle)
    assert report["bundle"] == {"name": "tiny", "digest": bundle.digest}
    assert report["repeats"] == 1
    assert report["threads"] >= 1
    assert report["machine"]["cores"] >= 1
    assert report["versions"]["torch"]

    assert set(report["networks"]) == set(networks(bundle.manifest))
    for name, figures in report["networks"].items():
        assert name in done.stdout
        seconds = figures["seconds"]
        assert set(seconds) == {"eager", "onnxruntime", "triton", "floor"}
        assert all(value > 0 for value in seconds.values())
        assert figures["onnxruntime_to_eager"] == pytest.approx(seconds["onnxruntime"] / seconds["eager"])
        assert figures["onnxruntime_to_floor"] == pytest.approx(seconds["onnxruntime"] / seconds["floor"])
        assert figures["triton_overhead_s"] == pytest.approx(seconds["triton"] - seconds["onnxruntime"])
        assert seconds["floor"] == pytest.approx(figures["flop"] / report["machine"]["matrix_flop_per_s"])
