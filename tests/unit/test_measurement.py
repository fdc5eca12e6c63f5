"""The measurement core: order of calls, warm-up, statistics and memory. No test depends on speed."""

import subprocess
import sys
from subprocess import PIPE

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foley_bench.measurement import Peak, Timing, interleave, measure, memory_bytes, peak_memory


def test_interleave_rotates_the_first_call():
    called = []
    calls = {name: (lambda name=name: called.append(name)) for name in "abc"}
    interleave(calls, 4)
    rounds = ["".join(called[i : i + 3]) for i in range(0, 12, 3)]
    assert rounds == ["abc", "bca", "cab", "abc"]


def test_interleave_returns_results_by_name():
    counters = {name: iter(range(start, 99)) for name, start in (("a", 0), ("b", 50))}
    found = interleave({name: (lambda name=name: next(counters[name])) for name in counters}, 3)
    assert found == {"a": [0, 1, 2], "b": [50, 51, 52]}


def test_interleave_runs_at_least_one_round_within_time_limit():
    advanced = []
    found = interleave({"a": lambda: 1, "b": lambda: 2}, 5, limit_s=0.0, on_round=lambda: advanced.append(1))
    assert found == {"a": [1], "b": [2]}
    assert len(advanced) == 1


def test_warm_up_is_not_timed():
    """The clock counts its calls; warm-up rounds are not clocked."""
    calls, clocked = [], []

    def clock(call):
        call()
        clocked.append(1)
        return float(len(clocked))

    found = measure({"a": lambda: calls.append(1)}, 3, clock=clock, warm_up=2)
    assert len(calls) == 5
    assert found["a"].seconds == (1.0, 2.0, 3.0)


@given(st.lists(st.floats(0.001, 100), min_size=1, max_size=30))
def test_median_and_iqr_match_numpy(seconds):
    timing = Timing(tuple(seconds))
    lower, middle, upper = np.percentile(seconds, (25, 50, 75))
    assert timing.median_s == pytest.approx(middle)
    assert timing.iqr_s == pytest.approx(upper - lower, abs=1e-9)


def test_peak_memory_includes_freed_memory():
    """Measured in a separate process: here, threads of other tests allocate, and shared pages move."""
    script = "import sys\nfor line in sys.stdin: held = bytearray(int(line)); print(flush=True)"
    child = subprocess.Popen([sys.executable, "-c", script], stdin=PIPE, stdout=PIPE, text=True)

    def hold(size: int) -> None:
        child.stdin.write(f"{size}\n")
        child.stdin.flush()
        child.stdout.readline()

    def processes() -> list[psutil.Process]:
        return [psutil.Process(child.pid)]

    with child:
        hold(0)
        before = memory_bytes(processes())
        with peak_memory(processes, peak := Peak()):
            hold(256 << 20)
            with peak_memory(processes, inner := Peak()):
                pass  # at least one sample is taken while the memory is held
            hold(0)
        after = memory_bytes(processes())
    assert inner.memory_bytes > before + (200 << 20)
    assert peak.memory_bytes >= before
    assert after < before + (100 << 20)
