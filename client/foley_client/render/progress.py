"""Progress of a render: a live display for terminals, or JSON lines."""

import json
import sys
import threading
import time
from collections import Counter, defaultdict, deque
from types import TracebackType
from typing import Any

from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from foley.bars import LINE_INTERVAL_S
from foley_client.console import console
from foley_client.render.farm import Event
from foley_client.render.task import Done, Failed

RATE_OVER = 50  # rendered rows over which the rate is averaged


class RenderStats:
    """Running totals of a render.

    Attributes:
        total: Number of rows.
        counts: Number of rows that have ended, by kind of event.
        running: Number of running rows.
        seconds: Stage to total seconds of all rendered rows.
        failures: The `failed` events.
        started_s: `time.monotonic()` of the start.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.counts: Counter[str] = Counter()
        self.running = 0
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.failures: list[Event] = []
        self.start()

    def start(self) -> None:
        """Restart the clock."""
        self.started_s = time.monotonic()
        self._ends: deque[float] = deque([self.started_s], RATE_OVER)

    def add(self, event: Event) -> None:
        """Update the totals with an event."""
        if event.kind == "started":
            self.running += 1
            return
        self.running -= 1
        if event.kind == "retry":
            return
        self.counts[event.kind] += 1
        if event.kind == "done":
            self._ends.append(time.monotonic())
        if event.kind == "failed":
            self.failures.append(event)
        if isinstance(event.outcome, Done):
            for stage, seconds in event.outcome.seconds.items():
                self.seconds[stage] += seconds

    @property
    def left(self) -> int:
        """Number of rows that have not ended."""
        return self.total - self.counts.total()

    @property
    def elapsed_s(self) -> float:
        """Seconds since `start`."""
        return time.monotonic() - self.started_s

    @property
    def rate(self) -> float:
        """Rendered rows per second, averaged over the last `RATE_OVER` rows."""
        return (len(self._ends) - 1) / (time.monotonic() - self._ends[0] + 1e-9)

    @property
    def left_s(self) -> float | None:
        """Estimated remaining seconds; None before the first row is rendered."""
        return self.left / self.rate if self.rate else None


class Display:
    """Live display on standard error; without a terminal, a line every `LINE_INTERVAL_S`."""

    def __init__(self, stats: RenderStats) -> None:
        self._stats = stats
        self._live = Live(console=console, get_renderable=self._table, refresh_per_second=4, transient=True)
        self._ended = threading.Event()
        self._lines = threading.Thread(target=self._print_lines, name="render-progress", daemon=True)

    def __enter__(self) -> "Display":
        if console.is_terminal:
            self._live.start()
        else:
            self._lines.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._live.stop()
        self._ended.set()
        if self._lines.ident is not None:
            self._lines.join()

    def on_event(self, event: Event) -> None:
        """Print a failed attempt permanently; other events only update the live table."""
        if isinstance(event.outcome, Failed):
            verb, style = ("failed", "red") if event.kind == "failed" else ("will be retried", "yellow")
            text = f"{event.row.output} {verb}: {event.outcome.reason}"
            console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    def _table(self) -> Table:
        table = Table.grid(padding=(0, 2))
        table.add_row(ProgressBar(self._stats.total, self._stats.counts.total(), width=30), *self._state())
        return table

    def _state(self) -> list[str]:
        stats = self._stats
        return [
            f"{stats.counts.total()} of {stats.total}",
            f"[green]{stats.counts['done']} done[/]",
            *([f"{stats.counts['skipped']} skipped"] if stats.counts["skipped"] else []),
            f"{stats.running} running",
            *([f"[red]{stats.counts['failed']} failed[/]"] if stats.counts["failed"] else []),
            *([f"{60 * stats.rate:.1f}/min", f"{clock(stats.left_s)} left"] if stats.left_s is not None else []),
        ]

    def _print_lines(self) -> None:
        while not self._ended.wait(LINE_INTERVAL_S):
            console.print(", ".join(self._state()), highlight=False, soft_wrap=True)


class JsonLines:
    """Writes one JSON line for each event, with the updated totals, to standard output."""

    def __init__(self, stats: RenderStats) -> None:
        self._stats = stats

    def __enter__(self) -> "JsonLines":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        pass

    def on_event(self, event: Event) -> None:
        """Write the line of an event."""
        stats = self._stats
        record: dict[str, Any] = {"event": event.kind, "output": event.row.output, "worker": event.worker}
        if isinstance(event.outcome, Failed):
            record |= {"error": event.outcome.kind, "reason": event.outcome.reason, "attempts": event.attempts}
        if isinstance(event.outcome, Done):
            record["seconds"] = {stage: round(seconds, 3) for stage, seconds in event.outcome.seconds.items()}
        record |= {kind: stats.counts[kind] for kind in ("done", "skipped", "failed")}
        record |= {"running": stats.running, "total": stats.total, "rate_hz": round(stats.rate, 3)}
        record["left_s"] = None if stats.left_s is None else round(stats.left_s, 1)
        print(json.dumps(record), file=sys.__stdout__, flush=True)  # `ray_engine.cluster` redirects sys.stdout


def clock(seconds: float) -> str:
    """Format seconds as `4:05` or `1:04:05`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
