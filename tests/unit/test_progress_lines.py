"""Progress without a terminal: plain lines on standard error, which here are printed for every event."""

import time

from foley import bars
from foley_client import console
from foley_client.render import progress
from foley_client.render.farm import Event
from foley_client.render.row import Row
from foley_client.render.task import Done, Failed
from foley_pipeline.progress import Progress, Stage


def test_bars_print_lines(capsys, monkeypatch):
    monkeypatch.setattr(bars, "LINE_INTERVAL_S", 0.0)
    assert list(bars.track(range(2), "sounds")) == [0, 1]
    with bars.Bars() as shown:
        task = shown.add_task("[weights].pth", total=None)
        shown.update(task, completed=10)
        shown.update(task, completed=50, total=200)
    out, err = capsys.readouterr()
    assert out == ""
    assert "sounds: 100 %" in err.splitlines()
    assert err.splitlines()[-2:] == ["[weights].pth: 0 s", "[weights].pth: 25 %"]


def test_bars_are_silent_for_short_work(capsys):
    assert len(list(bars.track(range(1000), "sounds"))) == 1000
    assert capsys.readouterr() == ("", "")


def test_stages_of_a_call_print_lines(capsys, monkeypatch):
    monkeypatch.setattr(console, "LINE_INTERVAL_S", 0.0)
    with console.ProgressDisplay() as display:
        display.on_progress(Progress(Stage.DENOISE, 1, 25))
        display.on_progress(Progress(Stage.DENOISE, 25, 25, seconds=12.3))
    with console.working("checking 3 inputs"):
        pass
    printed = ["denoising: 1 of 25, about 0 s left", "denoising: 12 s", "checking 3 inputs"]
    assert capsys.readouterr().err.splitlines() == printed


def test_render_prints_lines_while_rows_run(capsys, monkeypatch):
    monkeypatch.setattr(progress, "LINE_INTERVAL_S", 0.05)
    stats, row = progress.RenderStats(3), Row(video="a.mp4")
    events = [Event("started", row, "here", 0)] * 2
    events += [
        Event("done", row, "here", 0, Done(False, {}, None)),
        Event("retry", row, "here", 1, Failed("E", "x" * 200)),
    ]
    with progress.Display(stats) as display:
        for event in events:
            stats.add(event)
            display.on_event(event)
        printed = ""
        while "1 of 3, 1 done, 0 running" not in printed:
            time.sleep(0.05)
            printed += capsys.readouterr().err
    assert printed.count("\n") == len(printed.splitlines())
