"""Finds a Triton server: inside the `nvidia-pytriton` wheel, whose Python backend is made usable, or the official one.

Only the binary, the Python backend and its stubs are taken from the wheel; its own API is not used,
so that the same model repository runs in the official container, the one that has backends for GPUs.
"""

import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from foley.errors import ServerUnavailable

OFFICIAL = Path(os.environ.get("FOLEY_TRITON", "/opt/tritonserver"))


@dataclass(frozen=True)
class Installation:
    """Where the parts of a Triton lie.

    Attributes:
        python_backend: its files, with no stub among them that can be used.
        stub: of the running Python; None: the backend's own is used, as in the official container.
        libraries: a folder that the binary and the stub need to be told of, if any.
    """

    binary: Path
    python_backend: Path
    stub: Path | None
    caches: Path
    libraries: Path | None = None


def find_official() -> Installation:
    """The Triton of the official container, at /opt/tritonserver or where FOLEY_TRITON says.

    Raises:
        ServerUnavailable: there is none.
    """
    binary = OFFICIAL / "bin" / "tritonserver"
    if not binary.is_file():
        raise ServerUnavailable(
            f"no Triton with backends for GPUs at {OFFICIAL}: use this project's image (see Dockerfile), "
            "or let FOLEY_TRITON name the folder"
        )
    return Installation(binary, OFFICIAL / "backends" / "python", None, OFFICIAL / "caches")


def find() -> Installation:
    """The embedded Triton of this Python environment.

    Raises:
        ServerUnavailable: the wheel is not installed, or has no stub for the running Python.
    """
    spec = importlib.util.find_spec("pytriton")
    if spec is None or not spec.submodule_search_locations:
        raise ServerUnavailable("no Triton server here: install foley-server[triton] (Linux)")
    package = Path(spec.submodule_search_locations[0])
    triton = package / "tritonserver"
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = triton / "python_backend_stubs" / python / "triton_python_backend_stub"
    found = Installation(
        binary=triton / "bin" / "tritonserver",
        python_backend=triton / "backends" / "python",
        stub=stub,
        caches=triton / "caches",
        libraries=package.parent / "nvidia_pytriton.libs",
    )
    for part in (found.binary, stub):
        if not part.is_file():
            raise ServerUnavailable(f"the Triton wheel has no {part.name} for Python {python}: use Python 3.10 to 3.13")
    return found


def link_backends(installation: Installation, folder: Path) -> Path:
    """The folder of backends: for the wheel's `folder`, in which python is made one with the running Python's stub."""
    if installation.stub is None:
        return installation.python_backend.parent
    backend = folder / "python"
    backend.mkdir(parents=True)
    for file in installation.python_backend.iterdir():
        (backend / file.name).symlink_to(file)
    link = backend / installation.stub.name
    link.unlink(missing_ok=True)
    link.symlink_to(installation.stub)
    return folder
