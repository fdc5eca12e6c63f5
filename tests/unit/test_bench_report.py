"""The shared parts of performance reports: pages, `diff`, loads and Triton's counters."""

import json
import re
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from rich.table import Table

from foley.errors import ServerFailure, SettingError
from foley.stages import networks
from foley_bench import diff, report, work
from foley_bench.account import NETWORKS, computed_s
from foley_bench.flop import count_flop
from foley_bench.load import Load, closed_loop, open_loop, poisson
from foley_bench.stages import timed
from foley_bench.work import Work
from foley_client import Watch
from foley_export.presets import PRESETS

ABOUT = {
    "date": "2026-11-25T00:00:00+00:00",
    "machine": {"cpu": "a <b>fast</b> one", "cores": 2, "memory_bytes": 2**34},
    "versions": {"torch": "2.13"},
    "commit": "abc",
    "bundle": {"name": "tiny", "digest": "0" * 64},
    "settings": {"runs": 3},
}

Figures = dict[str, Any]
numbers = st.floats(1e-6, 1e6)
documents = st.recursive(
    numbers, lambda inner: st.dictionaries(st.sampled_from(["p50_s", "a b", "networks", "x"]), inner, min_size=1)
).filter(lambda document: isinstance(document, dict))


def in_file(folder: Path, document: object, name: str = "run.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(document))
    return path


def ratios(a: Figures, b: Figures) -> list[float]:
    return [float(cell) for cell in list(diff.table({**ABOUT, **a}, {**ABOUT, **b}).columns)[-1].cells]


@given(documents)
def test_a_run_is_1_times_itself(figures: Figures) -> None:
    assert set(ratios(figures, figures)) == {1.0}


@given(numbers, numbers)
def test_the_other_way_round_ratios_are_reciprocal(a: float, b: float) -> None:
    assert diff.ratio(a, b) * diff.ratio(b, a) == pytest.approx(1)


def test_what_was_nothing_has_a_ratio_too() -> None:
    assert diff.ratio(0, 0) == 1
    assert diff.ratio(0, 2) == np.inf
    assert diff.ratio(2, 0) == 0


def test_only_figures_are_compared() -> None:
    figures = {"networks": {"vocoder": {"triton_s": 2, "sizes": {}, "name": "x", "done": True, "list": [1]}}, "n": 1}
    assert diff.figures({**ABOUT, **figures}) == {("networks", "vocoder", "triton_s"): 2.0, ("n",): 1.0}
    shown = diff.table({**ABOUT, **figures}, {**ABOUT, "n": 3})
    assert [list(column.cells) for column in shown.columns] == [[""], ["n"], ["1"], ["3"], ["3.000"]]


def test_another_machine_is_warned_about() -> None:
    assert not list(diff.warnings(ABOUT, ABOUT))
    other = {**ABOUT, "machine": {**ABOUT["machine"], "cores": 64}, "bundle": {"name": "demo", "digest": "1" * 64}}
    warnings = list(diff.warnings(ABOUT, other))
    assert len(warnings) == 2
    assert "different machine: cores 2 → 64" in warnings


@pytest.mark.parametrize(
    "text", [None, "", "{", "[1]", "3", "{}", '{"machine": 3}', "[" * 100_000, "\x00", '{"a": ' + "9" * 5000 + "}"]
)
def test_what_is_no_report_is_refused(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "run.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SettingError, match=re.escape(str(path))):
        diff.read(path)


def test_a_report_is_read_back_and_a_stranger_has_nothing_in_common(tmp_path: Path) -> None:
    document = {**ABOUT, "latency": {"p50_s": 1.5}}
    assert diff.read(in_file(tmp_path, document)) == document
    with pytest.raises(SettingError, match="no figure in common"):
        diff.table(document, {**ABOUT, "closed": {"p50_s": 1.5}})


def test_a_page_needs_no_other_file_and_text_stays_text() -> None:
    table = Table("<i>network</i>", title="Times & floors", caption="a < b")
    table.add_row("<script>alert(1)</script>")
    figure = Figure(figsize=(2, 1))
    figure.subplots().plot([1, 2])
    page = report.page(report.Report('A "title"', "1 < 2", ABOUT, [table], {"<b>caption</b>": figure}))
    assert "://" not in page
    assert all(source.startswith("data:image/svg+xml;base64,") for source in re.findall(r'src="([^"]*)"', page))
    assert page.count("<img ") == 1
    assert not re.search("<script|<i>|<b>", page)
    for text in ("&lt;script&gt;alert(1)&lt;/script&gt;", "Times &amp; floors", "a &lt; b", "1 &lt; 2"):
        assert text in page


def test_latency_counts_from_when_a_request_was_due() -> None:
    """Two workers' worth of requests on something that does one at a time: the wait of the second counts."""
    lock = threading.Lock()

    def job() -> None:
        with lock:
            time.sleep(0.05)

    load = open_loop(job, np.zeros(3), Watch())
    assert sorted(load.latencies_s) == pytest.approx([0.05, 0.10, 0.15], abs=0.04)
    assert load.most_under_way == 3


def test_callers_ask_again_when_answered() -> None:
    load = closed_loop(lambda: time.sleep(0.02), 2, 6, Watch())
    assert len(load.latencies_s) == 6
    assert load.most_under_way == 2
    assert load.due_s.max() >= 2 * 0.02


def test_a_request_that_fails_ends_the_load() -> None:
    calls = []

    def job() -> None:
        calls.append(1)
        raise ServerFailure("broken")

    watch = Watch()
    with pytest.raises(ServerFailure):
        closed_loop(job, 1, 1000, watch)
    assert len(calls) < 1000
    assert watch._stop.is_set()


def test_throughput_is_requests_over_the_whole_time() -> None:
    load = Load(np.array([0.0, 10.0]), np.array([5.0, 20.0]))
    assert load.per_minute == 4
    assert load.most_under_way == 1


@given(st.integers(2, 50), st.floats(0.1, 1000), st.integers(0, 5))
def test_arrivals_keep_their_rate(count: int, per_minute: float, seed: int) -> None:
    due_s = poisson(count, per_minute, seed)
    assert due_s[0] == 0
    assert (np.diff(due_s) >= 0).all()
    assert due_s[-1] == pytest.approx(60 * (count - 1) / per_minute)


def test_rounds_end_when_the_time_is_up() -> None:
    seconds = timed({"a": lambda: time.sleep(0.01), "b": lambda: None}, 5, 0.0, lambda: None)
    assert {way: len(values) for way, values in seconds.items()} == {"a": 1, "b": 1}
    assert len(timed({"a": lambda: None}, 5, 60.0, lambda: None)["a"]) == 5


def test_tritons_counters_are_read_by_execution() -> None:
    """Two requests in one batch count twice in its statistics of requests, once in those of batches."""
    batch = {"count": "1", "ns": "2000000000"}
    found = work._work(
        {
            "inference_stats": {"success": {"count": "2", "ns": "9"}, "queue": {"count": "2", "ns": "500000000"}},
            "batch_stats": [
                {"batch_size": "2", "compute_input": {"count": "1"}, "compute_infer": batch, "compute_output": batch}
            ],
        }
    )
    assert found == Work(requests=2, queue_s=0.5, batches={2: 1}, copy_s=2.0, compute_s=2.0)
    assert (found.executions, found.rows) == (1, 2)
    assert found - found == Work(0, 0.0, {}, 0.0, 0.0)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_computing_model_belongs_to_one_stage(preset: str) -> None:
    for name in {*networks(PRESETS[preset]), *work.computing(PRESETS[preset])}:
        assert sum(name.startswith(prefixes) for prefixes in NETWORKS.values()) == 1


def test_of_two_networks_beside_each_other_the_longer_counts() -> None:
    seconds = {"optical_flow": 3.0, "flow_features": 1.0, "rgb_features": 3.5, "vae_decoder": 2.0, "vocoder": 1.0}
    done = {name: Work(1, 0.0, {1: 1}, 0.0, compute_s) for name, compute_s in seconds.items()}
    assert computed_s("optical flow and features", done) == 4.0
    assert computed_s("VAE and vocoder", done) == 3.0


def test_arithmetic_is_counted() -> None:
    a, b = torch.ones(3, 4), torch.ones(4, 5)
    assert count_flop(lambda: a @ b) == 2 * 3 * 4 * 5
