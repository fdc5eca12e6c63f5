"""Optional dependencies, and the extras of `foley-client` that install them."""

import importlib.util

from foley.errors import SettingError


def require(what: str, extra: str, *modules: str) -> None:
    """Check that optional modules are installed.

    Args:
        what: The feature that needs them, as named in the error message.
        extra: The extra of `foley-client` that installs them.
        *modules: Names of top-level modules.

    Raises:
        SettingError: A module is missing; the message gives the command that installs it.
    """
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise SettingError(f"{what} needs {' and '.join(missing)}: pip install 'foley-client[{extra}]'")
