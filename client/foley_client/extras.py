"""The libraries that only a part of the client needs, and the extras of `foley-client` that install them."""

import importlib.util

from foley.errors import SettingError


def require(what: str, extra: str, *modules: str) -> None:
    """Check that the top-level `modules`, which `extra` installs, are there.

    Args:
        what: what needs them, as the error names it.

    Raises:
        SettingError: some are not; names them and the command that installs them.
    """
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise SettingError(f"{what} needs {' and '.join(missing)}: pip install 'foley-client[{extra}]'")
