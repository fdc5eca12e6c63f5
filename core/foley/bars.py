"""Progress bars of the command lines. Requires rich, a dependency of each command line that has them."""

import time
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import Progress, ProgressColumn, TaskID

LINE_INTERVAL_S = 10.0
Item = TypeVar("Item")


class Bars(Progress):
    """rich's `Progress` on standard error. Without a terminal, it prints a line for each task every 10 s.

    Args:
        *columns: Columns of the bars; by default those of rich.
    """

    def __init__(self, *columns: str | ProgressColumn) -> None:
        console = Console(stderr=True)
        super().__init__(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._printed_s: dict[TaskID, float] = {}

    def update(self, task_id: TaskID, **changes: Any) -> None:
        """See `Progress.update`."""
        super().update(task_id, **changes)
        self._print_line(task_id)

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        """See `Progress.advance`."""
        super().advance(task_id, advance)
        self._print_line(task_id)

    def _print_line(self, task_id: TaskID) -> None:
        task, now = self._tasks.get(task_id), time.monotonic()
        since_s = self._printed_s.setdefault(task_id, now)
        if task is None or self.console.is_terminal or now - since_s < LINE_INTERVAL_S:
            return
        self._printed_s[task_id] = now
        done = f"{task.percentage:.0f} %" if task.total else f"{task.elapsed or 0:.0f} s"
        self.console.print(f"{task.description}: {done}", markup=False, highlight=False, soft_wrap=True)


def track(sequence: Sequence[Item], description: str) -> Iterator[Item]:
    """Yield the items of `sequence`, and show how many were taken, as `rich.progress.track`."""
    with Bars() as bars:
        yield from bars.track(sequence, description=description)
