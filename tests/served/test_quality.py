"""`foley-bench quality`, `steps` and `figures` on a real Triton report every measure."""

import json
import math
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from foley.bundle import read
from foley_bench.cli import app
from foley_bench.quality import figures, steps
from foley_pipeline.progress import StageTimer
from foley_pipeline.request import GenerationRequest
from foley_pipeline.result import GenerationResult
from foley_pipeline.triton_backend import TritonBackend
from harness import riff

BIN = Path(__file__).resolve().parents[2] / ".venv" / "bin"

COLUMNS = {"event_l1", "accuracy_pm2", "accuracy_pm5", "accuracy_pm8"}
ONSETS = {"accuracy", "ap", "f1_50ms", "f1_50ms_heldout_style"}
SOUND = {
    "event_l1",
    "event_l1_without_control",
    "envelope_correlation",
    "material_accuracy",
    "clap_score",
    "frechet_distance",
}


@pytest.mark.long
def test_quality_reports_every_measure(tiny_bundle: Path, tmp_path: Path) -> None:
    file, plots = tmp_path / "quality.json", tmp_path / "plots"
    command = [BIN / "foley-bench", "quality", tiny_bundle, "--clips", "2", "--json", file, "--plots", plots]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 1, done.stderr  # a random bundle misses targets
    assert "targets are missed" in done.stdout

    document = json.loads(file.read_text())
    assert document["clips"] == 2
    assert document["versions"]["bundle_sha256"] == read(tiny_bundle).digest
    video2rms, rms2sound = document["video2rms"], document["rms2sound"]
    assert set(video2rms["classification"]) == COLUMNS
    assert video2rms["regression"] == dict.fromkeys(COLUMNS)  # the bundle has no regression baseline
    assert set(video2rms["onset"]) >= ONSETS
    for prompt in ("text", "audio"):
        assert set(rms2sound[prompt]) >= SOUND
    assert all(math.isfinite(value) for value in numbers(document))

    # with two clips, accuracies are multiples of 0.5; the real sounds match their own envelopes
    assert {rms2sound[prompt]["material_accuracy"] for prompt in rms2sound} <= {0.0, 0.5, 1.0}
    assert rms2sound["real"]["event_l1"] == 0
    assert rms2sound["real"]["envelope_correlation"] == pytest.approx(1)
    assert rms2sound["text"]["event_l1"] != rms2sound["text"]["event_l1_without_control"]
    assert {path.name for path in plots.iterdir()} == {"video2rms.png", "rms2sound.png", "materials.png"}


def numbers(document: object) -> list[float]:
    """Return all numbers in a JSON document."""
    if isinstance(document, dict):
        return [number for value in document.values() for number in numbers(value)]
    return [document] if isinstance(document, int | float) else []


@pytest.mark.long
def test_steps_compares_the_same_noise(tiny_bundle: Path) -> None:
    full = {"sampler": "ddim", "steps": 8}
    settings = (full, {**full, "steps": 2}, {"sampler": "dpm++", "steps": 2}, full, {**full, "guidance": 2.0})
    document = steps.measure_steps(read(tiny_bundle), 2, 0, StageTimer(), settings)
    first, coarse, other, repeated, guided = document["rows"]
    assert guided["mel_distance_db"] == guided["waveform_distance"] == 0  # the reference of its guidance
    assert first["mel_distance_db"] == 0
    assert repeated["mel_distance_db"] < 0.1  # batches of other sizes round differently
    assert coarse["mel_distance_db"] > repeated["mel_distance_db"]
    assert other["mel_distance_db"] > repeated["mel_distance_db"]
    assert all(math.isfinite(value) for row in document["rows"] for value in numbers(row))
    assert "dpm++, 2 steps, guidance 3.5" in [cell for column in steps.table(document).columns for cell in column.cells]


def test_figures_are_images_and_sounds(backend: TritonBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generate = backend.generate

    def few_steps(request: GenerationRequest, **options: Any) -> GenerationResult:
        return generate(replace(request, options=request.options.model_copy(update={"steps": 2})), **options)

    monkeypatch.setattr(backend, "generate", few_steps)
    figures.make(backend, tmp_path)
    sounds = sorted(tmp_path.glob("*.wav"))
    assert [path.stem.split("-")[0] for path in sounds] == ["figure11"] * 4 + ["figure12"] * 6
    for path in sounds:
        waveform, rate = soundfile.read(path)
        assert (len(waveform), rate) == (80_000, 16_000)
        assert np.abs(waveform).max() > 0
        assert riff.recipe(path)["seed"] == 0
    assert {path.name for path in tmp_path.glob("*.png")} == {"figure11.png", "figure12.png"}


def test_rejects_invalid_options(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for options in (["--json", tmp_path / "q.txt"], ["--plots", tmp_path / "file"], ["--clips", "1"]):
        result = CliRunner().invoke(app, ["quality", str(tiny_bundle), *map(str, options)])
        assert getattr(result.exception, "exit_code", result.exit_code) == 2
