"""The supervisor when its Triton fails to start or stops serving; the Triton itself is replaced."""

import errno
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from foley.errors import FoleyError, ServerUnavailable
from foley_server.launcher import supervisor as module
from foley_server.launcher.supervisor import RunningTriton, Supervisor

FULL = OSError(errno.ENOSPC, "No space left on device")


class Source:
    """Raises each of `errors` in turn; serves where it is None, and after the last one."""

    def __init__(self, *errors: Exception | None) -> None:
        self.errors = list(errors)
        self.alive = True
        self.silence_s = 0.0
        self.killed = 0

    @contextmanager
    def serve(self) -> Iterator[RunningTriton]:
        error = self.errors.pop(0) if self.errors else None
        if error:
            raise error
        self.alive, self.silence_s = True, 0.0
        client = SimpleNamespace(ready=lambda: True, silence_s=lambda: self.silence_s)
        yield RunningTriton(client, None, lambda: self.alive, self.kill)

    def kill(self) -> None:
        self.killed += 1


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MIN_BACKOFF_S", 0.01)
    monkeypatch.setattr(module, "PROCESS_CHECK_S", 0.01)
    monkeypatch.setattr(module, "READINESS_CHECK_S", 0.0)


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("error", [FULL, ServerUnavailable("no wheel"), RuntimeError("a mistake")])
def test_error_at_first_start_is_raised(error: Exception) -> None:
    supervisor = Supervisor(Source(error), lambda ready: None)
    with pytest.raises(FoleyError if not isinstance(error, RuntimeError) else RuntimeError) as raised:
        supervisor.start()
    assert str(error) in str(raised.value)
    supervisor.stop()


@pytest.mark.parametrize("error", [FULL, ServerUnavailable("not now"), RuntimeError("a mistake")])
def test_failed_restart_is_retried(error: Exception) -> None:
    source, changes = Source(None, error, error), list[bool]()
    supervisor = Supervisor(source, changes.append)
    supervisor.start()
    source.alive = False
    wait_until(lambda: supervisor.starts == 2 and supervisor.ready)
    assert changes[0]
    assert changes[-1]
    assert False in changes
    supervisor.stop()


def test_unresponsive_model_restarts_triton() -> None:
    source = Source()
    supervisor = Supervisor(source, lambda ready: None, hang_timeout_s=5.0)
    supervisor.start()
    source.silence_s = 4.0
    time.sleep(0.1)
    assert (supervisor.starts, source.killed) == (1, 0)
    source.silence_s = 6.0
    wait_until(lambda: supervisor.starts == 2)
    assert source.killed == 1
    supervisor.stop()
