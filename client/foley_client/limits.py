"""Options of the command line for the limits on videos and recordings."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from foley.container import DEFAULT_LIMITS, NO_LIMITS, Limits, limits_for
from foley.errors import MediaTooLarge, SettingError

_PANEL = "Limits"

MaxDuration = Annotated[
    str | None,
    typer.Option(
        metavar="SECONDS",
        rich_help_panel=_PANEL,
        help="Longest video or recording in seconds; a server with a public API has its own limit.",
        show_default=f"{DEFAULT_LIMITS.duration_s:g}",
    ),
]
MaxPixels = Annotated[
    str | None,
    typer.Option(
        metavar="NUMBER",
        rich_help_panel=_PANEL,
        help="Most pixels per frame of a video.",
        show_default=f"{DEFAULT_LIMITS.pixels}, 4K",
    ),
]
NoLimits = Annotated[
    bool,
    typer.Option(
        "--no-limits",
        rich_help_panel=_PANEL,
        help="Read videos of any length and size. Use it for files that you trust: frames can be huge.",
    ),
]


def limits_of(max_duration: str | None, max_pixels: str | None, no_limits: bool) -> Limits:
    """Return the limits that the options choose, given as the texts of the command line.

    Raises:
        SettingError: A limit is not a positive number, or is given with `no_limits`.
    """
    if no_limits:
        if max_duration is not None or max_pixels is not None:
            raise SettingError("--no-limits excludes --max-duration and --max-pixels; leave one of them out")
        return NO_LIMITS
    duration_s = DEFAULT_LIMITS.duration_s if max_duration is None else _number(max_duration)
    pixels = DEFAULT_LIMITS.pixels if max_pixels is None else _number(max_pixels)
    if not 0 < duration_s < math.inf:
        raise SettingError(f"--max-duration is {max_duration}; give seconds, or --no-limits")
    if not 1 <= pixels <= NO_LIMITS.pixels:
        raise SettingError(f"--max-pixels is {max_pixels}; give a number from 1 to {NO_LIMITS.pixels}, or --no-limits")
    return limits_for(duration_s, int(pixels))


def _number(text: str) -> float:
    """Return the number in a text; NaN, which no limit allows, if there is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def advised(error: MediaTooLarge) -> MediaTooLarge:
    """Return the error with the option that raises the limit; the same error if the limit is that of a server."""
    if error.limit is None:
        return error
    options = {"duration_s": "--max-duration", "frames": "--max-duration", "pixels": "--max-pixels"}
    return MediaTooLarge(f"{error}, or raise the limit with {options.get(error.limit, '--no-limits')}")


@contextmanager
def advising() -> Iterator[None]:
    """Raise errors of limits as `advised`."""
    try:
        yield
    except MediaTooLarge as error:
        raise advised(error) from error
