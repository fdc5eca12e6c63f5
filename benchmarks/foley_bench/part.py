"""A stage of the work on a clip, timed whole or on a part of it."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """How long `done` of `whole` equal parts took."""

    measured_s: float
    done: int
    whole: int

    @property
    def seconds(self) -> float:
        """Of the whole stage."""
        return self.measured_s * self.whole / self.done

    @property
    def is_scaled(self) -> bool:
        """Whether only a part was measured."""
        return self.done < self.whole


def timed(work: Callable[[], Iterator[int]], whole: int, most: int) -> Timing:
    """Time `work` until `most` of its `whole` parts are done; every piece of work answers how many parts it was.

    The first piece is done once more before: memory is taken and kernels are chosen then.
    """
    next(work())
    done = 0
    started = time.perf_counter()
    for parts in work():
        done += parts
        if done >= min(most, whole):
            break
    return Timing(time.perf_counter() - started, done, whole)
