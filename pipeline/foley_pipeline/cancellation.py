"""Cancellation of calls, from any thread."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from foley.errors import Cancelled, FoleyError, TimedOut


class CancelToken:
    """Cancels the calls that it is passed to. Thread-safe; a token cannot be reset.

    Example:
        cancel = CancelToken()
        threading.Timer(60, cancel.cancel).start()
        backend.generate(request, cancel=cancel)  # raises Cancelled after 60 s
    """

    def __init__(self) -> None:
        self._error: Exception | None = None
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._callbacks: dict[object, Callable[[], object]] = {}

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._event.is_set()

    @property
    def error(self) -> Exception:
        """The error that the cancelled calls raise; of this project's errors, a new instance for every call."""
        error = self._error or Cancelled("cancelled")
        return type(error)(*error.args) if isinstance(error, FoleyError) else error

    def cancel(self, error: Exception | None = None) -> None:
        """Cancel the calls: those that wait for a server end within a second, and no new ones start.

        Args:
            error: The error that they raise; None: `Cancelled`. Only the first call of this method counts.
        """
        with self._lock:
            if not self._event.is_set():
                self._error = error
                self._event.set()
            callbacks = list(self._callbacks.values())
        for callback in callbacks:  # without the lock, as a callback may end another thread's `on_cancel` block
            callback()

    def check(self) -> None:
        """Check for cancellation.

        Raises:
            Cancelled: The token was cancelled; another error if `cancel` was given one.
        """
        if self._event.is_set():
            raise self.error

    def sleep(self, seconds: float) -> None:
        """Sleep for `seconds`.

        Raises:
            Cancelled: The token was cancelled before or during the sleep; see `check`.
        """
        self._event.wait(seconds)
        self.check()

    @contextmanager
    def on_cancel(self, callback: Callable[[], object]) -> Iterator[None]:
        """Register `callback` for the duration of the block; `cancel` calls it in the thread that cancels.

        Raises:
            Cancelled: The token was already cancelled; see `check`.
        """
        key = object()
        with self._lock:
            self.check()
            self._callbacks[key] = callback
        try:
            yield
        finally:
            with self._lock:
                del self._callbacks[key]

    @contextmanager
    def child(self, timeout_s: float | None = None) -> Iterator["CancelToken"]:
        """Create a token for calls that are cancelled together.

        The child is cancelled when this token is cancelled or when the block raises; cancelling the child does not
        cancel this token. Enter it after the thread pool of the calls, so that the calls are cancelled before the pool
        waits for them.

        Args:
            timeout_s: Time after which the child is cancelled with `TimedOut`; None: never.

        Yields:
            The child token.
        """
        child = CancelToken()
        timer = None
        if timeout_s is not None:
            expired = TimedOut(f"the call took more than its timeout of {timeout_s:g} s; set a longer one")
            timer = threading.Timer(timeout_s, child.cancel, [expired])
            timer.daemon = True
            timer.start()
        try:
            with self.on_cancel(lambda: child.cancel(self._error)):
                yield child
        except BaseException:
            child.cancel()
            raise
        finally:
            if timer:
                timer.cancel()
