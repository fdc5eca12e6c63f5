"""Triton's log: passed on to Python's logging line by line, and searched for the reason of a failed start."""

import logging
import re
import threading
from collections import deque
from typing import IO

KEPT_LINES = 1_000  # for the diagnosis; a start writes some hundreds
MAX_LINE_BYTES = 8_192  # longer lines are split
DRAIN_TIMEOUT_S = 1.0

_HEADER = re.compile(r"([IWEF])\d{4} \S+ \d+ (.*)")  # level and date, time, process, FILE:LINE] MESSAGE
_LEVELS = {"I": logging.INFO, "W": logging.WARNING, "E": logging.ERROR, "F": logging.CRITICAL}

log = logging.getLogger("triton")
log.addHandler(logging.NullHandler())  # without another handler, warnings would go to standard error


class TritonLog:
    """Reads what a Triton and the processes of its models write, in a thread that ends with the last of them.

    Every line becomes a record of the logger `triton`; the last `KEPT_LINES` are kept.

    Args:
        output: The reading end of their pipe; it is closed at its end.
    """

    def __init__(self, output: IO[bytes]) -> None:
        self._lock = threading.Lock()
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._thread = threading.Thread(target=self._read, args=(output,), name="triton-log", daemon=True)
        self._thread.start()

    def _read(self, output: IO[bytes]) -> None:
        with output:
            while content := output.readline(MAX_LINE_BYTES):
                line = content.decode(errors="replace").rstrip()
                with self._lock:
                    self._lines.append(line)
                if line:
                    log.log(*_record(line))

    def drain(self) -> None:
        """Wait until all that was written has been read, after the processes have exited."""
        self._thread.join(DRAIN_TIMEOUT_S)

    def lines(self) -> list[str]:
        """Return the last lines."""
        with self._lock:
            return list(self._lines)

    def load_failure(self) -> str | None:
        """Return what Triton wrote about the first model that failed to load."""
        for line in self.lines():
            if match := re.search(r"^E.*?\] \"?(failed to load '.*)", line):
                return _first_sentence(match[1])
        return None

    def first_error(self) -> str:
        """Return the load failure, else the first error about a model, else the last line."""
        lines = [line for line in self.lines() if line.strip()] or ["its log is empty"]
        errors = [line.split("] ", 1)[-1] for line in lines if line.startswith("E") and "model" in line]
        return self.load_failure() or _first_sentence([*errors, lines[-1]][0])

    def model_output(self) -> str | None:
        """Return the last line that is not Triton's: output of a model's process."""
        return next((line for line in reversed(self.lines()) if line and _is_model_output(line)), None)


def _record(line: str) -> tuple[int, str]:
    """Return the level and the message of a line's log record."""
    if header := _HEADER.fullmatch(line):
        return _LEVELS[header[1]], header[2]
    return (logging.WARNING if _is_model_output(line) else logging.DEBUG), line


def _is_model_output(line: str) -> bool:
    return not re.match(r"[IWEF]\d{4} |[|+]", line)  # neither a message of Triton nor a row of its tables


def _first_sentence(message: str) -> str:
    """Return a logged message without quotes and without the stack trace that follows it."""
    return message.strip('"').split("\\n", 1)[0]
