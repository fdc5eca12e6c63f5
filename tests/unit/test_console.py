"""Progress where there is no terminal: a line now and then, with the time that is left."""

import pytest

from foley_client import console
from foley_pipeline.progress import Progress, Stage


@pytest.mark.parametrize(
    ("done", "seconds", "left"),
    [
        (199_000, 7_960, "40 s"),
        (180_000, 8_100, "15 min"),
        (100_000, 8_000, "2 h 13 min"),
        (1_000, 4_800, "265 h 20 min"),
    ],
    ids=["seconds", "minutes", "hours", "days"],
)
def test_line_tells_the_time_that_is_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], done: int, seconds: int, left: str
) -> None:
    now = iter([0, 4, seconds])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(now))
    monkeypatch.setattr(console, "console", console.Console(width=200, force_terminal=False))
    display = console.ProgressDisplay()
    for progress in (Progress(Stage.FEATURES, 0, 200_000), Progress(Stage.FEATURES, 1, 200_000)):
        display.on_progress(progress)
    assert capsys.readouterr().out == "", "nothing within the first seconds"
    display.on_progress(Progress(Stage.FEATURES, done, 200_000))
    assert capsys.readouterr().out == f"optical flow and features: {done} of 200000, about {left} left\n"
