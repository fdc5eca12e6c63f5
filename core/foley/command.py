"""Runs a command line: an error becomes one sentence on standard error and an exit code."""

import errno
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from foley.errors import Cancelled, FoleyError, OutputError


class Terminated(BaseException):
    """Raised on Ctrl-C and on signals that terminate the process, so that cleanup code runs.

    It is not a KeyboardInterrupt, which typer handles itself, and not an Exception, which a library might swallow.
    """


def terminate(*_: object) -> NoReturn:
    """Raise `Terminated` in the main thread; a signal handler."""
    raise Terminated


def run(program: Callable[[], None]) -> None:
    """Call `program`; a `FoleyError` ends the process with its message and exit code."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # ignored under nohup and in background jobs of a shell
            signal.signal(number, terminate)
    try:
        program()
    except FoleyError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_code)
    except OSError as error:  # writes of any kind: each of them can find the disk full
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = f"{error.filename}: " if error.filename else ""
        sys.stderr.write(f"error: {where}{error.strerror}; free space, or set TMPDIR for temporary files\n")
        sys.exit(OutputError.exit_code)
    except Terminated:
        sys.stderr.write("stopped\n")
        sys.exit(Cancelled.exit_code)
