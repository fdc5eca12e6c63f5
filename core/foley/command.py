"""Running a command line: what goes wrong is one sentence on standard error and an exit code."""

import sys
from collections.abc import Callable

from foley.errors import FoleyError


def run(program: Callable[[], None]) -> None:
    """Call `program`; an error of this project ends the process with its message and exit code."""
    try:
        program()
    except FoleyError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_code)
