"""Readings of counters that lag behind what they count."""

import time
from collections.abc import Callable
from typing import TypeVar

Reading = TypeVar("Reading")

INTERVAL_S = 0.2


def settled(read: Callable[[], Reading], interval_s: float = INTERVAL_S) -> Reading:
    """Return a reading once two in a row agree: Triton counts a call only after it has responded."""
    before = read()
    while True:
        time.sleep(interval_s)
        if (after := read()) == before:
            return after
        before = after
