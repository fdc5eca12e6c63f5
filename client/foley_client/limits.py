"""Options of the command line for the limits on videos and recordings."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from foley.container import DEFAULT_LIMITS, NO_LIMITS, Limits, limits_for
from foley.errors import MediaTooLarge, SettingError

MaxDuration = Annotated[
    float | None,
    typer.Option(
        help="Longest video or recording in seconds; a server with a public API has its own limit.",
        show_default=f"{DEFAULT_LIMITS.duration_s:g}",
    ),
]
MaxPixels = Annotated[
    int | None, typer.Option(help="Most pixels per frame of a video.", show_default=f"{DEFAULT_LIMITS.pixels}, 4K")
]
NoLimits = Annotated[
    bool,
    typer.Option(
        "--no-limits", help="Read videos of any length and size. Use it for files that you trust: frames can be huge."
    ),
]


def limits_of(max_duration: float | None, max_pixels: int | None, no_limits: bool) -> Limits:
    """Return the limits that the options choose.

    Raises:
        SettingError: A limit is not a positive number, or is given with `no_limits`.
    """
    if no_limits:
        if max_duration is not None or max_pixels is not None:
            raise SettingError("--no-limits excludes --max-duration and --max-pixels; leave one of them out")
        return NO_LIMITS
    duration_s = DEFAULT_LIMITS.duration_s if max_duration is None else max_duration
    pixels = DEFAULT_LIMITS.pixels if max_pixels is None else max_pixels
    if not 0 < duration_s < math.inf:
        raise SettingError(f"--max-duration is {duration_s:g}; give seconds, or --no-limits")
    if not 0 < pixels <= NO_LIMITS.pixels:
        raise SettingError(f"--max-pixels is {pixels}; give a number from 1 to {NO_LIMITS.pixels}, or --no-limits")
    return limits_for(duration_s, pixels)


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
