"""The shared parts of performance reports: HTML pages, load generators and Triton's statistics."""

import re
import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from rich.table import Table

from foley.errors import ServerFailure
from foley.stages import networks
from foley_bench import counters, report
from foley_bench.counters import Counters
from foley_bench.load_generator import LoadResult, closed_loop, open_loop, poisson_arrivals
from foley_bench.overhead import NETWORKS, compute_s_of
from foley_bench.roofline import count_flop
from foley_export.presets import PRESETS
from foley_pipeline.cancellation import CancelToken

ABOUT = {
    "date": "2026-11-25T00:00:00+00:00",
    "machine": {"cpu": "a <b>fast</b> one", "cores": 2, "memory_bytes": 2**34},
    "versions": {"torch": "2.13"},
    "commit": "abc",
    "bundle": {"name": "tiny", "digest": "0" * 64},
    "settings": {"runs": 3},
}


def test_page_is_self_contained_and_escapes_text() -> None:
    table = Table("<i>network</i>", title="Times & bounds", caption="a < b")
    table.add_row("<script>alert(1)</script>")
    figure = Figure(figsize=(2, 1))
    figure.subplots().plot([1, 2])
    page = report.render_html(report.Report('A "title"', "1 < 2", ABOUT, [table], {"<b>caption</b>": figure}))
    assert "://" not in page
    assert all(source.startswith("data:image/svg+xml;base64,") for source in re.findall(r'src="([^"]*)"', page))
    assert page.count("<img ") == 1
    assert not re.search("<script|<i>|<b>", page)
    for text in ("&lt;script&gt;alert(1)&lt;/script&gt;", "Times &amp; bounds", "a &lt; b", "1 &lt; 2"):
        assert text in page


def test_open_loop_latency_includes_waiting() -> None:
    """Three simultaneous requests to a job that runs one at a time: waiting counts as latency."""
    lock = threading.Lock()

    def job() -> None:
        with lock:
            time.sleep(0.05)

    load = open_loop(job, np.zeros(3), CancelToken())
    assert (np.sort(load.latencies_s) >= np.array([0.049, 0.099, 0.149])).all()  # lower bounds: the machine may be slow
    assert load.max_in_flight == 3


def test_closed_loop_callers_send_next_request_after_response() -> None:
    load = closed_loop(lambda: time.sleep(0.02), 2, 6, CancelToken())
    assert len(load.latencies_s) == 6
    assert load.max_in_flight == 2
    assert load.due_s.max() >= 2 * 0.02


def test_failed_request_ends_the_load() -> None:
    calls = []

    def job() -> None:
        calls.append(1)
        time.sleep(0.01)  # 10 s in total, unless the error ends the load
        raise ServerFailure("broken")

    cancel = CancelToken()
    with pytest.raises(ServerFailure):
        closed_loop(job, 1, 1000, cancel)
    assert len(calls) < 1000
    assert cancel.cancelled


def test_throughput_is_requests_per_total_time() -> None:
    load = LoadResult(np.array([0.0, 10.0]), np.array([5.0, 20.0]))
    assert load.per_minute == 4
    assert load.max_in_flight == 1


@given(st.integers(2, 50), st.floats(0.1, 1000), st.integers(0, 5))
def test_poisson_arrivals_have_the_given_rate(count: int, per_minute: float, seed: int) -> None:
    due_s = poisson_arrivals(count, per_minute, seed)
    assert due_s[0] == 0
    assert (np.diff(due_s) >= 0).all()
    assert due_s[-1] == pytest.approx(60 * (count - 1) / per_minute)


def test_counters_distinguish_requests_and_executions() -> None:
    """Two requests in one batch count twice in the request statistics and once in the batch statistics."""
    batch = {"count": "1", "ns": "2000000000"}
    found = counters._counters(
        {
            "inference_stats": {"success": {"count": "2", "ns": "9"}, "queue": {"count": "2", "ns": "500000000"}},
            "batch_stats": [
                {"batch_size": "2", "compute_input": {"count": "1"}, "compute_infer": batch, "compute_output": batch}
            ],
        }
    )
    assert found == Counters(requests=2, queue_s=0.5, batches={2: 1}, copy_s=2.0, compute_s=2.0)
    assert (found.executions, found.rows) == (1, 2)
    assert found - found == Counters(0, 0.0, {}, 0.0, 0.0)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_model_belongs_to_one_stage(preset: str) -> None:
    for name in {*networks(PRESETS[preset]), *counters.compute_models(PRESETS[preset])}:
        assert sum(name.startswith(prefixes) for prefixes in NETWORKS.values()) == 1


def test_longer_of_two_parallel_networks_counts() -> None:
    seconds = {"optical_flow": 3.0, "flow_features": 1.0, "rgb_features": 3.5, "vae_decoder": 2.0, "vocoder": 1.0}
    done = {name: Counters(1, 0.0, {1: 1}, 0.0, compute_s) for name, compute_s in seconds.items()}
    assert compute_s_of("features", done) == 4.0
    assert compute_s_of("decode", done) == 3.0


def test_flop_are_counted() -> None:
    a, b = torch.ones(3, 4), torch.ones(4, 5)
    assert count_flop(lambda: a @ b) == 2 * 3 * 4 * 5
