"""Finds a Triton server: inside the `nvidia-pytriton` wheel, whose Python backend is made usable, or the official one.

Only the binary, the Python backend and its stubs are taken from the wheel; its own API is not used,
so that the same model repository runs in the official container, the one that has backends for GPUs.
"""

import importlib.util
import os
import re
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from foley.errors import ServerUnavailable

OFFICIAL = Path(os.environ.get("FOLEY_TRITON", "/opt/tritonserver"))
STUB = "triton_python_backend_stub"


@dataclass(frozen=True)
class Installation:
    """Where the parts of a Triton lie.

    Attributes:
        python_backend: its files, with no stub among them that can be used.
        stub: of the running Python; None: the backend's own is used, as in the official container.
        libraries: folders that the dynamic linker has to search for the binary and the stub.
    """

    binary: Path
    python_backend: Path
    stub: Path | None
    caches: Path
    libraries: tuple[Path, ...] = ()


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
    stub = triton / "python_backend_stubs" / python / STUB
    found = Installation(
        binary=triton / "bin" / "tritonserver",
        python_backend=triton / "backends" / "python",
        stub=stub,
        caches=triton / "caches",
        libraries=(package.parent / "nvidia_pytriton.libs", *_python_libraries()),
    )
    for part in (found.binary, stub):
        if not part.is_file():
            raise ServerUnavailable(f"the Triton wheel has no {part.name} for Python {python}: use Python 3.10 to 3.13")
    return found


def _python_libraries() -> list[Path]:
    """The folder of the running Python's shared library, or nothing where Python was installed without one.

    The dynamic linker does not know this folder where Python comes from pyenv, uv or conda.
    """
    # The stub needs this name even where Python itself is linked statically (sysconfig's INSTSONAME ends in .a then).
    name = f"libpython{sys.version_info.major}.{sys.version_info.minor}.so.1.0"
    # LIBDIR is the folder that Python was built for; one that was moved afterwards, such as uv's, is in its prefix.
    folders = [Path(sys.base_prefix, "lib"), Path(sysconfig.get_config_var("LIBDIR") or "")]
    return [folder for folder in folders if (folder / name).is_file()][:1]


def environment(installation: Installation) -> dict[str, str]:
    """The environment variables to start Triton with."""
    # The user's own folders stay, behind those that belong to this Triton and this Python.
    libraries = [*map(str, installation.libraries), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    return {
        **os.environ,
        **({"LD_LIBRARY_PATH": os.pathsep.join(libraries)} if libraries else {}),
        "ORT_DISABLE_TELEMETRY": "1",  # from 1.29 on, official Linux builds report to Microsoft unless told not to
        # the stub embeds Python, ignores PYTHONPATH, and takes its environment from the first python3 it finds
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
    }


def need_libraries(installation: Installation) -> None:
    """Check that the dynamic linker finds every shared library of the stub, the process of a model in Python.

    Without this check the stub exits at once, and Triton waits `stub-timeout-seconds` for it.

    Raises:
        ServerUnavailable: a library is missing; the message says what to install.
    """
    stub = installation.stub or installation.python_backend / STUB
    # With this variable glibc's linker lists a program's libraries and does not run it; `ldd` does the same.
    variables = environment(installation) | {"LD_TRACE_LOADED_OBJECTS": "1"}
    listing = subprocess.run([stub], env=variables, capture_output=True, text=True, check=False).stdout
    missing = re.findall(r"^\s*(\S+) => not found", listing, re.MULTILINE)
    for library in missing:
        if library.startswith("libpython"):
            package = library.split(".so")[0]
            raise ServerUnavailable(
                f"Triton needs {library}, which the Python in {sys.base_prefix} lacks: install it (on Debian and "
                f"Ubuntu with `apt-get install {package}`), or use a Python that is built with --enable-shared"
            )
    if missing:
        raise ServerUnavailable(f"Triton needs {', '.join(missing)}: install what this machine lacks of them")


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
