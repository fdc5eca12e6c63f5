"""The supervisor when its Triton fails to start or stops serving; the Triton itself is replaced."""

import errno
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from foley.errors import FoleyError, ServerFailure, ServerUnavailable
from foley_pipeline.cancellation import CancelToken
from foley_server.launcher import supervisor as module
from foley_server.launcher.supervisor import RunningTriton, Supervisor

FULL = OSError(errno.ENOSPC, "No space left on device")


class Source:
    """Raises each of `errors` in turn; serves where it is None, and after the last one.

    Attributes:
        canary: Called for each canary step.
    """

    name = "one"

    def __init__(self, *errors: Exception | None, is_embedded: bool = True) -> None:
        self.errors = list(errors)
        self.is_embedded = is_embedded
        self.failure: str | None = None
        self.silence_s = 0.0
        self.canary: Callable[[], object] = lambda: None
        self.ends = list[BaseException | None]()

    @contextmanager
    def serve(self, cancel: CancelToken) -> Iterator[RunningTriton]:
        error = self.errors.pop(0) if self.errors else None
        if error:
            raise error
        self.failure, self.silence_s = None, 0.0
        client: Any = SimpleNamespace(
            ready=lambda: True, silence_s=lambda: self.silence_s, lost=False, canary=lambda: self.canary()
        )
        try:
            yield RunningTriton(client, None, lambda: self.failure)
        except BaseException as end:
            self.ends.append(end)
            raise


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MIN_BACKOFF_S", 0.01)
    monkeypatch.setattr(module, "CHECK_S", 0.01)
    monkeypatch.setattr(module, "READINESS_CHECK_S", 0.0)
    monkeypatch.setattr(module.canary, "check", lambda client, *_: client.canary())


@contextmanager
def supervised(source: Source, changes: list[bool] | None = None) -> Iterator[Supervisor]:
    """Run a supervisor, which appends its changes of availability to `changes`."""
    noted = [] if changes is None else changes
    supervisor = Supervisor(source, lambda: noted.append(supervisor.running is not None), hang_timeout_s=5.0)
    supervisor.start()
    try:
        yield supervisor
    finally:
        supervisor.stop()


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def refuse() -> None:
    raise ServerFailure("no step")


@pytest.mark.parametrize("error", [FULL, ServerUnavailable("no wheel"), RuntimeError("a mistake")])
def test_error_at_first_start_is_final_for_embedded_triton(error: Exception) -> None:
    with supervised(Source(error)) as supervisor:
        reason = supervisor.started.exception(20)
        assert isinstance(reason, FoleyError if not isinstance(error, RuntimeError) else RuntimeError)
        assert str(error) in str(reason)
        with pytest.raises(ServerUnavailable) as raised:
            supervisor.client()
        assert raised.value.retry_after_s
        assert supervisor.starts == 0


def test_error_at_first_connection_is_retried_for_remote_triton(caplog: pytest.LogCaptureFixture) -> None:
    refused = [ServerUnavailable("nobody responds; start one") for _ in range(3)]
    with supervised(Source(*refused, is_embedded=False)) as supervisor:
        supervisor.started.result(20)
        assert supervisor.client()
    assert caplog.text.count("nobody responds; start one") == 1  # not one line per attempt


def test_failed_canary_at_first_start_is_reported() -> None:
    source = Source()
    source.canary = refuse
    with supervised(source) as supervisor:
        assert "no step" in str(supervisor.started.exception(20))
        assert isinstance(source.ends[0], ServerFailure)  # Triton is killed


@pytest.mark.parametrize("error", [FULL, ServerUnavailable("not now"), RuntimeError("a mistake")])
def test_failed_restart_is_retried(error: Exception) -> None:
    source, changes = Source(None, error, error), list[bool]()
    with supervised(source, changes) as supervisor:
        supervisor.started.result(20)
        source.failure = "a process has exited"
        wait_until(lambda: changes == [True, False, True])
        assert supervisor.starts == 2


def test_unresponsive_model_restarts_triton() -> None:
    source = Source()
    with supervised(source) as supervisor:
        supervisor.started.result(20)
        source.silence_s = 4.0
        time.sleep(0.1)
        assert (supervisor.starts, source.ends) == (1, [])
        source.silence_s = 6.0
        wait_until(lambda: supervisor.starts == 2)
        assert "has not responded for 6 s" in str(source.ends[0])


def test_failed_canary_takes_triton_out_until_it_passes() -> None:
    source = Source()
    with supervised(source) as supervisor:
        supervisor.started.result(20)
        assert not supervisor.failed(ServerFailure("a request failed"))
        assert supervisor.running
        source.canary = refuse
        assert supervisor.failed(ServerFailure("a request failed"))
        assert supervisor.running is None
        wait_until(lambda: len(source.ends) > 3)  # restarts do not help
        assert supervisor.running is None
        assert supervisor.starts == 1
        assert supervisor.failed(ServerFailure("a request that failed at the same time"))
        source.canary = lambda: None
        wait_until(lambda: supervisor.running is not None)
        assert not supervisor.failed(ServerFailure("a request failed"))


def test_requests_that_fail_together_share_a_canary() -> None:
    source, steps, entered, leave = Source(), list[int](), threading.Event(), threading.Event()

    def step() -> None:
        steps.append(1)
        entered.set()
        assert leave.wait(20)

    with supervised(source) as supervisor, ThreadPoolExecutor(8) as pool:
        supervisor.started.result(20)
        source.canary = step
        first = pool.submit(supervisor.failed, ServerFailure("first"))
        assert entered.wait(20)
        others = [pool.submit(supervisor.failed, ServerFailure("other")) for _ in range(7)]
        time.sleep(0.2)
        leave.set()
        assert not any(call.result(20) for call in (first, *others))
    assert len(steps) == 2  # the others asked after the first one's had begun


def test_stop_before_start_and_during_back_off() -> None:
    supervisor = Supervisor(Source(), lambda: None)
    supervisor.stop()
    assert supervisor.started.cancelled()
    source = Source(*[ServerUnavailable("nobody")] * 100, is_embedded=False)
    with supervised(source) as supervisor:
        wait_until(lambda: len(source.errors) < 97)
    assert supervisor.started.cancelled()
    assert supervisor.running is None
