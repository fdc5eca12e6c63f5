"""Paths that callers give as strings or paths."""

import os
from pathlib import Path

from foley.errors import SettingError


def file_path(file: object, name: str) -> Path:
    """Return the path of a file.

    Args:
        file: A string or a path.
        name: What the file is, for the error message.

    Raises:
        SettingError: `file` is neither a string nor a path, or it is a URL.
    """
    try:
        path = os.fspath(file)  # type: ignore[call-overload]
    except TypeError:
        path = None
    if not isinstance(path, str):
        raise SettingError(f"{name} is {type(file).__name__}: give the path of a file")
    if "://" in path:
        raise SettingError(f"{name} is the URL {path}: download it first, and give the path of the file")
    return Path(path)
