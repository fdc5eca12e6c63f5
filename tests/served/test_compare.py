"""`foley-bench compare`: both sides do equal work. No test depends on speed."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from foley.bundle import read
from foley.errors import BundleError
from foley.metrics import relative_l2
from foley_bench import inputs
from foley_bench.compare import VIDEO, Unit, clip_units, end_to_end, make_comparisons, measure
from foley_bench.machine import pin_threads
from foley_bench.measurement import Timing
from foley_pipeline.progress import StageTimer
from foley_pipeline.triton import TritonClient
from foley_pipeline.triton_backend import TritonBackend

BIN = Path(__file__).resolve().parents[2] / ".venv" / "bin"
TOLERANCE = 1e-3  # relative L2


@pytest.fixture(scope="module")
def work(tiny_bundle: Path, triton: TritonClient) -> Iterator[dict[str, Unit]]:
    with torch.inference_mode():
        yield clip_units(read(tiny_bundle), triton, VIDEO)


@pytest.mark.parametrize("name", inputs.CALLS)
def test_baseline_matches_server(triton: TritonClient, work: dict[str, Unit], name: str) -> None:
    """A baseline with other inputs, sizes or guidance, or with part of the work, would give other values."""
    calls = work[name].calls
    ours = calls["server"]()[triton.stages[name].outputs[0].name]
    assert relative_l2(ours, calls["baseline"]()[0].numpy()) < TOLERANCE


def test_control_is_the_same_function_on_both_sides(work: dict[str, Unit]) -> None:
    assert work["decode"].calls["baseline"] is work["decode"].calls["server"]
    assert set(work["decode"].calls) == {"baseline", "server"}


def test_equal_times_have_a_speedup_of_1(work: dict[str, Unit], triton: TritonClient) -> None:
    """With equal times for every call, only the algorithm and the JPEG files make a difference."""
    found = {name: dict.fromkeys(unit.calls, Timing((0.1, 0.1, 0.1))) for name, unit in work.items()}
    found["JPEG files"] = {"baseline": Timing((0.0,))}
    same_work, same_steps, balanced, *_ = (
        end_to_end(one, work, found, 1e9) for one in make_comparisons(TritonBackend(triton))
    )
    assert same_work["speedup"] == pytest.approx(1)
    assert same_steps["speedup"] == pytest.approx(1)
    assert balanced["speedup"] > 1


def test_profile_counts_guided_and_unguided_steps(triton: TritonClient) -> None:
    foley = TritonBackend(triton)
    balanced, fast, _ = make_comparisons(foley)[2:]
    assert (balanced.guided, balanced.unguided) == (foley.defaults.steps, 0)
    assert fast.guided + fast.unguided == 10
    assert fast.unguided > 0  # guidance only at high noise levels
    assert {one.baseline_steps for one in (balanced, fast)} == {200}


def test_pytorch_uses_the_threads_of_a_session(tiny_bundle: Path) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(before + 3)
        assert pin_threads(read(tiny_bundle)) == torch.get_num_threads()
        assert torch.get_num_threads() < before + 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.long
def test_compare_reports_work_steps_and_profiles(tiny_bundle: Path, tmp_path: Path) -> None:
    file, page = tmp_path / "compare.json", tmp_path / "compare.html"
    command = [BIN / "foley-bench", "compare", "--bundle", tiny_bundle, "--json", file, "--report", page]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    report = json.loads(file.read_text())
    same_work, same_steps, *profiles = report["end_to_end"]
    assert same_work == "same work"
    assert same_steps == "25 steps on both sides"
    assert profiles == ["--profile balanced", "--profile fast", "--profile balanced --flow dis"]
    assert all(name in done.stdout for name in report["end_to_end"])
    assert report["control"]["decode_speedup"] > 0
    assert report["settings"]["threads"] >= 1
    assert min(report["peak_memory_bytes"].values()) > 0
    assert "it should be 1" in page.read_text()
    rounds = {side["rounds"] for unit in report["units"].values() for side in unit.values() if isinstance(side, dict)}
    assert len(rounds) == 1  # equal for both sides and all units


def test_rejects_bundle_without_raft(repository: Path) -> None:
    with pytest.raises(BundleError, match="no RAFT"):
        measure(read(repository / "bundles" / "demo"), full=False, timer=StageTimer())
