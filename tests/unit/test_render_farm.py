"""Scheduling of the render farm: order, placement, retries and failures, on an engine with scripted outcomes."""

from collections import Counter, defaultdict
from concurrent.futures import Future

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foley_client.render import farm
from foley_client.render.engine import Threads
from foley_client.render.farm import MAX_FAILURES, MAX_LOSSES, render_all
from foley_client.render.row import Row
from foley_client.render.storage import Output
from foley_client.render.task import Done, Failed, Predicted, Task, try_render
from foley_pipeline.cancellation import CancelToken

DONE = Done(False, {}, None)
BAD = Failed("MediaError", "it is no video")
DAMAGED = Failed("MediaError", "it is damaged", permanent=True)
LOST = Failed("ServerUnavailable", "the server went away", worker_lost=True)


@pytest.fixture(autouse=True, scope="module")
def _no_pauses():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(farm, "MAX_BACKOFF_S", 0.0)
        patch.setattr(farm, "_TICK_S", 0.0)
        yield


class Scripted:
    """Workers with capacities; `ends(worker, task, attempt)` returns the outcome of an attempt.

    Each call of `workers` ends the attempts that `ended(running)` selects, at least one.
    """

    def __init__(self, capacities, ends, ended=lambda running: list(running)):
        self.capacities, self.ends, self.ended = capacities, ends, ended
        self.running = []
        self.attempts = defaultdict(list)  # output -> workers
        self.stopped = self.overloaded = False

    def workers(self):
        assert not self.overloaded
        for one in self.ended(self.running) if self.running else []:
            worker, task, future = one
            future.set_result(self.ends(worker, task, len(self.attempts[task.row.output])))
            self.running.remove(one)
        return self.capacities

    def submit(self, worker, task):
        self.attempts[task.row.output].append(worker)
        future = Future()
        self.running.append((worker, task, future))
        count = Counter(worker for worker, _, _ in self.running)
        self.overloaded |= count[worker] > self.capacities[worker]
        return future

    def stop(self):
        self.stopped = True
        for _, _, future in self.running:
            future.set_result(DONE)
        self.running = []


def rows(count, video=lambda i: f"{i}.mp4"):
    return [Row(video=video(i), output=f"{i}.wav") for i in range(count)]


def outcomes_of(engine, all_rows):
    """Return how every row ended, and assert that each started and ended once."""
    ended = {}
    started = Counter()
    for event in render_all(all_rows, engine):
        name = event.row.output
        assert name not in ended
        if event.kind == "started":
            started[name] += 1
        elif event.kind != "retry":
            ended[name] = event.kind
    assert ended.keys() == {row.output for row in all_rows} == started.keys()
    assert started == {name: len(workers) for name, workers in engine.attempts.items()}
    return ended


def test_capacities_are_filled_starting_with_most_free():
    engine = Scripted({"a": 2, "b": 4}, lambda worker, task, attempt: DONE)
    events = render_all(rows(12), engine)
    first = [next(events) for _ in range(6)]
    assert Counter(event.worker for event in first) == {"a": 2, "b": 4}
    assert [event.worker for event in first[:2]] == ["b", "b"]
    assert [event.kind for event in events].count("done") == 12


def test_failed_row_is_retried_on_other_workers():
    engine = Scripted(
        {"a": 2, "b": 2, "c": 2}, lambda worker, task, attempt: BAD if task.row.output == "3.wav" else DONE
    )
    ended = outcomes_of(engine, rows(9))
    assert ended.pop("3.wav") == "failed"
    assert set(ended.values()) == {"done"}
    assert len(engine.attempts["3.wav"]) == MAX_FAILURES
    assert set(engine.attempts["3.wav"]) == {"a", "b", "c"}  # never twice on the same worker
    assert all(len(workers) == 1 for name, workers in engine.attempts.items() if name != "3.wav")


def test_permanent_failure_is_not_retried():
    engine = Scripted({"a": 2, "b": 2}, lambda worker, task, attempt: DAMAGED if task.row.output == "3.wav" else DONE)
    assert outcomes_of(engine, rows(5)).pop("3.wav") == "failed"
    assert len(engine.attempts["3.wav"]) == 1


def test_only_damaged_input_is_a_permanent_failure(tmp_path):
    """A file that cannot be read now may be readable later, or on another worker."""
    (tmp_path / "damaged.mp4").write_bytes(b"no video" * 100)

    def permanent(video):
        outcome = try_render(
            Task(Row(video=video, output="0.wav")), None, Output(str(tmp_path), tmp_path), tmp_path, CancelToken()
        )
        assert outcome.kind == "MediaError"
        assert not outcome.worker_lost
        return outcome.permanent

    assert permanent(str(tmp_path / "damaged.mp4"))
    assert not permanent(str(tmp_path / "missing.mp4"))
    assert not permanent("memory://bucket/missing.mp4")


def test_single_worker_makes_all_attempts():
    engine = Scripted({"a": 1}, lambda worker, task, attempt: DONE if attempt == MAX_FAILURES else BAD)
    assert set(outcomes_of(engine, rows(3)).values()) == {"done"}


def test_lost_worker_loses_no_rows():
    lost = iter([LOST] * 20)
    engine = Scripted({"a": 4, "b": 4}, lambda worker, task, attempt: next(lost, DONE) if worker == "a" else DONE)
    assert set(outcomes_of(engine, rows(50)).values()) == {"done"}


def test_row_that_crashes_workers_fails():
    engine = Scripted({"a": 2, "b": 2}, lambda worker, task, attempt: LOST if task.row.output == "0.wav" else DONE)
    ended = outcomes_of(engine, rows(5))
    assert ended == {"0.wav": "failed"} | {f"{i}.wav": "done" for i in range(1, 5)}
    assert len(engine.attempts["0.wav"]) == MAX_LOSSES


def test_workers_join_and_leave():
    capacities = {}
    engine = Scripted(capacities, lambda worker, task, attempt: DONE)
    events = render_all(rows(6), engine)
    capacities["late"] = 2
    assert next(events).worker == "late"
    seen = Counter()
    for event in events:
        seen[event.kind] += 1
        if seen["done"] == 2:
            capacities.pop("late", None)
            capacities["later"] = 1
    assert seen["done"] == 6
    assert "later" in {workers[-1] for workers in engine.attempts.values()}


@pytest.mark.parametrize("failures", [0, 1, MAX_FAILURES])
def test_rows_of_one_video_share_its_envelope(failures):
    prediction = Predicted("key", np.ones(3, np.float32))
    predictions = []
    remaining_failures = [failures]

    def ends(worker, task, attempt):
        if task.predicted is not None:
            assert task.predicted is prediction
            return DONE
        if remaining_failures[0]:
            remaining_failures[0] -= 1
            return BAD
        predictions.append(task.row.output)
        return Done(False, {}, prediction)

    engine = Scripted({"a": 4, "b": 4}, ends)
    all_rows = rows(8, lambda i: "same.mp4" if i % 2 else f"{i}.mp4")
    own = [Row(video="same.mp4", output="own.wav", envelope="curve.json")]
    engine.ends = lambda worker, task, attempt: DONE if task.row.envelope else ends(worker, task, attempt)
    outcomes_of(engine, all_rows + own)
    assert len([name for name in predictions if int(name.split(".")[0]) % 2]) == 1
    assert len(engine.attempts["own.wav"]) == 1


def test_closing_stops_running_tasks():
    engine = Scripted({"a": 3}, lambda worker, task, attempt: DONE)
    events = render_all(rows(9), engine)
    next(events)
    events.close()
    assert engine.stopped
    assert engine.running == []


@settings(max_examples=500)
@given(data=st.data())
def test_every_row_ends_once(data):
    outcomes = st.sampled_from([DONE, DONE, BAD, LOST, Done(True, {}, Predicted("k", np.ones(1, np.float32)))])
    capacities = data.draw(st.dictionaries(st.sampled_from("abc"), st.integers(1, 3), min_size=1))

    def ended(running):
        return data.draw(st.lists(st.sampled_from(running), min_size=1, unique_by=id), "ended")

    engine = Scripted(capacities, lambda worker, task, attempt: data.draw(outcomes), ended)
    count = data.draw(st.integers(1, 8))
    videos = [f"{data.draw(st.integers(0, 1))}.mp4" for _ in range(count)]
    ended = outcomes_of(engine, rows(count, lambda i: videos[i]))
    for name, kind in ended.items():
        assert (kind == "failed") <= (len(engine.attempts[name]) >= MAX_FAILURES)


def test_retried_row_does_not_block_others():
    """0 fails on a and waits for 1, which has its video; when 1 ends, only a has capacity, where 0 is not retried."""
    script = iter([["0"], ["1"]])

    def ended(running):
        names = next(script, None)
        return [one for one in running if names is None or one[1].row.output[0] in names]

    def ends(worker, task, attempt):
        return BAD if (task.row.output, attempt) == ("0.wav", 1) else DONE

    engine = Scripted({"a": 1, "b": 1}, ends, ended)
    all_rows = [Row(video=video, output=f"{i}.wav") for i, video in enumerate(["v", "w", "v", "x"])]
    assert set(outcomes_of(engine, all_rows).values()) == {"done"}
    assert engine.attempts["0.wav"] == ["a", "b"]


class Breaking:
    """A server on which the first attempt of every third row raises an exception that is not a FoleyError."""

    def __init__(self):
        self.calls = Counter()

    def versions(self):
        return {}

    def render(self, task):
        self.calls[task.row.output] += 1
        if int(task.row.output[0]) % 3 == 0 and self.calls[task.row.output] == 1:
            raise SystemExit
        return DONE

    def stop(self):
        pass

    def close(self):
        pass


def test_thread_failures_lose_no_rows():
    """Every row ends on a real thread pool, also if a thread or the pool fails."""
    server = Breaking()
    engine = Threads({"a": server, "b": server}, 2)
    kinds = Counter(event.kind for event in render_all(rows(9), engine))
    assert kinds == {"started": 12, "retry": 3, "done": 9}
    engine.close()
    kinds = Counter(event.kind for event in render_all(rows(1), engine))
    assert kinds == {"started": MAX_LOSSES, "retry": MAX_LOSSES - 1, "failed": 1}
