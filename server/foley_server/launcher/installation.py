"""Locates a Triton server: the one in the `nvidia-pytriton` wheel, or an official installation.

Only the binary, the Python backend and its stubs are used from the wheel, not the API of PyTriton, so that the same
model repository also runs in the official container, which has the backends for GPUs.
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
    """Paths of a Triton installation.

    Attributes:
        binary: The `tritonserver` executable.
        python_backend: Folder of the Python backend. In the wheel it contains no usable stub.
        stub: Stub executable for the running Python version; None to use the one in `python_backend`, as in the
            official container.
        caches: Folder of the response cache implementations.
        libraries: Folders that the dynamic linker must search for the binary and the stub.
    """

    binary: Path
    python_backend: Path
    stub: Path | None
    caches: Path
    libraries: tuple[Path, ...] = ()


def find_official() -> Installation:
    """Return the Triton of the official container, at /opt/tritonserver or $FOLEY_TRITON.

    Raises:
        ServerUnavailable: There is no Triton in that folder.
    """
    binary = OFFICIAL / "bin" / "tritonserver"
    if not binary.is_file():
        raise ServerUnavailable(
            f"no Triton with backends for GPUs at {OFFICIAL}: use this project's image (see Dockerfile), "
            "or set FOLEY_TRITON to the folder of an installation"
        )
    return Installation(binary, OFFICIAL / "backends" / "python", None, OFFICIAL / "caches")


def find() -> Installation:
    """Return the embedded Triton of this Python environment.

    Raises:
        ServerUnavailable: The wheel is not installed, or has no stub for the running Python version.
    """
    spec = importlib.util.find_spec("pytriton")
    if spec is None or not spec.submodule_search_locations:
        raise ServerUnavailable("Triton is not installed: install foley-server[triton] (Linux)")
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
    """Return the folder of the running Python's shared library; empty if Python was installed without one.

    The folder is not on the dynamic linker's search path if Python comes from pyenv, uv or conda.
    """
    # The stub needs this name even if Python itself is linked statically (sysconfig's INSTSONAME then ends in .a).
    name = f"libpython{sys.version_info.major}.{sys.version_info.minor}.so.1.0"
    # LIBDIR is the folder that Python was built for; a relocated Python, such as uv's, has the library in its prefix.
    folders = [Path(sys.base_prefix, "lib"), Path(sysconfig.get_config_var("LIBDIR") or "")]
    return [folder for folder in folders if (folder / name).is_file()][:1]


def environment(installation: Installation) -> dict[str, str]:
    """Return the environment variables to start Triton with."""
    # The user's own folders are kept, after those of this Triton and this Python.
    libraries = [*map(str, installation.libraries), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    return {
        **os.environ,
        **({"LD_LIBRARY_PATH": os.pathsep.join(libraries)} if libraries else {}),
        "ORT_DISABLE_TELEMETRY": "1",  # official Linux builds send telemetry to Microsoft by default from 1.29
        # the stub embeds Python, ignores PYTHONPATH, and uses the environment of the first python3 on PATH
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
    }


def check_libraries(installation: Installation) -> None:
    """Check that the dynamic linker finds every shared library of the stub, which runs each Python model.

    If a library is missing, the stub exits at once, and Triton waits `stub-timeout-seconds` for it.

    Raises:
        ServerUnavailable: A library is missing; the message says what to install.
    """
    stub = installation.stub or installation.python_backend / STUB
    # With this variable, glibc's linker lists a program's libraries instead of running it, as `ldd` does.
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
        raise ServerUnavailable(f"shared libraries that Triton needs are missing: install {', '.join(missing)}")


def link_backends(installation: Installation, folder: Path) -> Path:
    """Return the folder to pass as `--backend-directory`.

    For the wheel this is `folder`, filled with links to the Python backend and to the stub for the running Python.
    """
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
