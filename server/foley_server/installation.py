"""Finds the Triton server inside the `nvidia-pytriton` wheel and makes its Python backend usable.

Only the binary, the Python backend and its stubs are taken from the wheel; its own API is not used,
so that the same model repository runs in the official container.
"""

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path

from foley.errors import ServerUnavailable


@dataclass(frozen=True)
class Installation:
    """Where the parts of the embedded Triton lie."""

    binary: Path
    python_backend: Path
    stub: Path
    caches: Path
    libraries: Path


def find() -> Installation:
    """The embedded Triton of this Python environment.

    Raises:
        ServerUnavailable: the wheel is not installed, or has no stub for the running Python.
    """
    spec = importlib.util.find_spec("pytriton")
    if spec is None or not spec.submodule_search_locations:
        raise ServerUnavailable("no Triton server here: install it with `pip install nvidia-pytriton==0.7.0` (Linux)")
    package = Path(spec.submodule_search_locations[0])
    triton = package / "tritonserver"
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    found = Installation(
        binary=triton / "bin" / "tritonserver",
        python_backend=triton / "backends" / "python",
        stub=triton / "python_backend_stubs" / python / "triton_python_backend_stub",
        caches=triton / "caches",
        libraries=package.parent / "nvidia_pytriton.libs",
    )
    for part in (found.binary, found.stub):
        if not part.is_file():
            raise ServerUnavailable(f"the Triton wheel has no {part.name} for Python {python}: use Python 3.10 to 3.13")
    return found


def link_backends(installation: Installation, folder: Path) -> Path:
    """Make `folder`/python a backend with the stub of the running Python; return `folder`."""
    backend = folder / "python"
    backend.mkdir(parents=True)
    for file in installation.python_backend.iterdir():
        (backend / file.name).symlink_to(file)
    stub = backend / installation.stub.name
    stub.unlink(missing_ok=True)
    stub.symlink_to(installation.stub)
    return folder
