"""Terminal output of the command line: progress bars and a table of timings."""

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from foley_pipeline.watch import Watch

console = Console(stderr=True)  # standard output is reserved for results


class ProgressWatch(Watch):
    """Shows a progress bar for each running stage. Use it as a context manager."""

    def __init__(self) -> None:
        super().__init__()
        self._progress = Progress(
            TextColumn("{task.description:28}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> "ProgressWatch":
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._progress.stop()

    def on_progress(self, name: str, done: int, total: int | None) -> None:
        """Add or update the bar of stage `name`."""
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=total)
        self._progress.update(self._tasks[name], completed=done)

    def on_end(self, name: str) -> None:
        """Remove the bar of stage `name`."""
        self._progress.remove_task(self._tasks.pop(name))


def print_timings(watch: Watch) -> None:
    """Print the time of every stage and the total elapsed time, which is less than the sum if stages overlap."""
    table = Table("stage", "seconds", title="Time of each stage")
    table.columns[1].justify = "right"
    for name, seconds in watch.timings_s.items():
        table.add_row(name, f"{seconds:.2f}")
    table.add_section()
    table.add_row("all", f"{watch.elapsed_s:.2f}")
    console.print(table)
