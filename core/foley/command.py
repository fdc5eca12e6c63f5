"""Running a command line: what goes wrong is one sentence on standard error and an exit code."""

import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from foley.errors import Cancelled, FoleyError


class Stopped(BaseException):
    """Ctrl-C, or a signal that ends the process; everything that is under way is undone on the way out.

    Not KeyboardInterrupt, which typer answers by itself, and no Exception, which a library might swallow.
    """


def stop(*_: object) -> NoReturn:
    """The signal handler: raise `Stopped` in the main thread."""
    raise Stopped


def run(program: Callable[[], None]) -> None:
    """Call `program`; an error of this project ends the process with its message and exit code."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup, and a shell's background jobs, ignore some
            signal.signal(number, stop)
    try:
        program()
    except FoleyError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_code)
    except Stopped:
        sys.stderr.write("stopped\n")
        sys.exit(Cancelled.exit_code)
