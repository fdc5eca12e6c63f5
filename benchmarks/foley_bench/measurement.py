"""The measurement core: interleaved calls, medians with their interquartile range, and peak memory.

The candidates are called in turn, in an order that rotates every round, so that other load on the machine affects them
equally.
"""

import math
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import psutil

Result = TypeVar("Result")
Clock = Callable[[Callable[[], object]], float]
"""Calls a function and returns the duration in seconds."""

SAMPLING_INTERVAL_S = 0.05


@dataclass(frozen=True)
class Timing:
    """The durations of at least one call, in seconds."""

    seconds: tuple[float, ...]

    @property
    def median_s(self) -> float:
        """The median duration."""
        return statistics.median(self.seconds)

    @property
    def iqr_s(self) -> float:
        """The interquartile range of the durations, 0 for a single one."""
        if len(self.seconds) == 1:
            return 0.0
        lower, _, upper = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return upper - lower

    def as_dict(self) -> dict[str, float]:
        """Return the timing for a JSON document."""
        return {"median_s": self.median_s, "iqr_s": self.iqr_s, "rounds": len(self.seconds)}


def interleave(
    calls: Mapping[str, Callable[[], Result]],
    rounds: int,
    limit_s: float = math.inf,
    on_round: Callable[[], object] = lambda: None,
) -> dict[str, list[Result]]:
    """Call every function once per round, in an order that rotates every round.

    Args:
        calls: The functions, by the names of their results.
        rounds: Number of rounds.
        limit_s: No round but the first begins later than this after the start.
        on_round: Called after every round.

    Returns:
        The results of each call, one a round.
    """
    results: dict[str, list[Result]] = {name: [] for name in calls}
    order = list(calls)
    started = time.perf_counter()
    for i in range(rounds):
        if i and time.perf_counter() - started > limit_s:
            break
        for name in order:
            results[name].append(calls[name]())
        order.append(order.pop(0))
        on_round()
    return results


def wall_clock(call: Callable[[], object]) -> float:
    """Measure a call with the wall clock; a `Clock`."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def measure(
    calls: Mapping[str, Callable[[], object]],
    rounds: int,
    limit_s: float = math.inf,
    on_round: Callable[[], object] = lambda: None,
    clock: Clock = wall_clock,
    warm_up: int = 1,
) -> dict[str, Timing]:
    """Time interleaved calls: `warm_up` untimed rounds, then timed ones; see `interleave`."""

    def timed(call: Callable[[], object]) -> Callable[[], float]:
        return lambda: clock(call)

    interleave(calls, warm_up)
    seconds = interleave({name: timed(call) for name, call in calls.items()}, rounds, limit_s, on_round)
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


@dataclass
class Peak:
    """The peak memory in bytes."""

    memory_bytes: int = field(default=0)


def memory_bytes(processes: Iterable[psutil.Process]) -> int:
    """Return the total proportional set size (PSS) of processes, in which a shared page counts once."""
    return sum(process.memory_full_info().pss for process in processes)


def own_process() -> list[psutil.Process]:
    """Return this process."""
    return [psutil.Process()]


def server_processes() -> list[psutil.Process]:
    """Return all descendants of this process: the server and its children."""
    return psutil.Process().children(recursive=True)


@contextmanager
def peak_memory(processes: Callable[[], list[psutil.Process]], peak: Peak) -> Iterator[None]:
    """Raise `peak` to the largest `memory_bytes` of `processes` in the context, sampled every 50 ms.

    Sampling takes CPU time: do not time anything in the context.
    """
    done = threading.Event()

    def sample() -> None:
        while True:
            peak.memory_bytes = max(peak.memory_bytes, memory_bytes(processes()))
            if done.wait(SAMPLING_INTERVAL_S):
                return

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
