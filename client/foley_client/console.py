"""Terminal output of the command line: progress and a table of timings."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar
from rich.table import Table

from foley.bars import LINE_INTERVAL_S
from foley_pipeline.progress import Progress, Stage, StageTimer, label

console = Console(stderr=True)  # standard output is reserved for results


@contextmanager
def working(what: str) -> Iterator[None]:
    """Show what is done in the block: a spinner on a terminal, else a line."""
    if console.is_terminal:
        with console.status(what):
            yield
    else:
        console.print(what, highlight=False)
        yield


class ProgressDisplay:
    """Shows the progress of a call on standard error: a bar per running stage on a terminal, else a line now and then.

    Both tell the time that is left in the stage, if it goes on at the same speed.

    Use it as a context manager.

    Attributes:
        timer: Times the stages of the caller, and shows them too.
    """

    def __init__(self) -> None:
        self.timer = StageTimer(self.on_progress)
        self._bars = ProgressBar(
            TextColumn("{task.description:28}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._started_s: dict[str, float] = {}
        self._printed_s: dict[str, float] = {}

    def __enter__(self) -> "ProgressDisplay":
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._bars.stop()

    def on_progress(self, progress: Progress) -> None:
        """Show an event; an `OnProgress`."""
        if progress.envelope is None:
            self._show_bar(progress) if console.is_terminal else self._print_line(progress)

    def _show_bar(self, progress: Progress) -> None:
        stage = progress.stage
        if progress.seconds is not None:
            if stage in self._tasks:
                self._bars.remove_task(self._tasks.pop(stage))
            return
        shown = label(stage)
        if stage == Stage.QUEUE:
            shown, progress = f"{shown}, {progress.total} ahead", Progress(stage)
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(shown, total=progress.total)
        self._bars.update(self._tasks[stage], description=shown, completed=progress.done, total=progress.total)

    def _print_line(self, progress: Progress) -> None:
        now, stage = time.monotonic(), progress.stage
        started_s = self._started_s.setdefault(stage, now)
        since_s = self._printed_s.setdefault(stage, now)
        if progress.seconds is None and now - since_s >= LINE_INTERVAL_S and progress.total:
            self._printed_s[stage] = now
            done = f"{progress.total} ahead" if stage == Stage.QUEUE else f"{progress.done} of {progress.total}"
            if progress.done:
                left_s = (now - started_s) / progress.done * (progress.total - progress.done)
                done += f", about {_about(left_s)} left"
            console.print(f"{label(stage)}: {done}", highlight=False)
        if progress.seconds is not None:
            del self._printed_s[stage], self._started_s[stage]
            if progress.seconds >= LINE_INTERVAL_S:
                console.print(f"{label(stage)}: {progress.seconds:.0f} s", highlight=False)


def _about(seconds: float) -> str:
    """Return a duration for people: `40 s`, `12 min` or `2 h 10 min`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def print_timings(timer: StageTimer) -> None:
    """Print the time of every stage and the total elapsed time, which is less than the sum if stages overlap."""
    table = Table("stage", "seconds", title="Time of each stage")
    table.columns[1].justify = "right"
    for name, seconds in timer.timings_s.items():
        table.add_row(label(name), f"{seconds:.2f}")
    table.add_section()
    table.add_row("all", f"{timer.elapsed_s:.2f}")
    console.print(table)
