"""The measurement core: interleaved calls, medians with their interquartile range, and peak memory.

What is compared is called in turn, in an order that rotates every round, so that other load on the machine meets all
sides alike.
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
"""Calls what it is given, and returns the seconds that the call took."""

SAMPLING_INTERVAL_S = 0.05


@dataclass(frozen=True)
class Timing:
    """The durations of equal calls, in seconds, one or more."""

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
        """The timing for a JSON document."""
        return {"median_s": self.median_s, "iqr_s": self.iqr_s, "rounds": len(self.seconds)}


def interleave(
    calls: Mapping[str, Callable[[], Result]],
    rounds: int,
    limit_s: float = math.inf,
    on_round: Callable[[], object] = lambda: None,
) -> dict[str, list[Result]]:
    """Call everything once a round, in an order that rotates every round.

    Args:
        calls: the functions, by the names of their results.
        rounds: number of rounds.
        limit_s: no round but the first begins later than this after the start.
        on_round: called after every round.

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
    """The `Clock` of a processor."""
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
    """Time calls against each other: `warm_up` untimed rounds, then `interleave`, each call timed by `clock`."""

    def timed(call: Callable[[], object]) -> Callable[[], float]:
        return lambda: clock(call)

    interleave(calls, warm_up)
    seconds = interleave({name: timed(call) for name, call in calls.items()}, rounds, limit_s, on_round)
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


@dataclass
class Peak:
    """The largest memory seen, in bytes."""

    memory_bytes: int = field(default=0)


def memory_bytes(processes: Iterable[psutil.Process]) -> int:
    """The proportional set size (PSS) of processes together: a page that several of them share counts once."""
    return sum(process.memory_full_info().pss for process in processes)


def own_process() -> list[psutil.Process]:
    """This process."""
    return [psutil.Process()]


def server_processes() -> list[psutil.Process]:
    """Every process that this one has started: the server, and what the server has started."""
    return psutil.Process().children(recursive=True)


@contextmanager
def peak_memory(processes: Callable[[], list[psutil.Process]], peak: Peak) -> Iterator[None]:
    """Raise `peak` to the largest `memory_bytes` of `processes` in the context, sampled every 50 ms.

    Sampling takes processor time: nothing should be timed in the context.
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
