"""`foley-server run` with other Python installations, and failures at start, which are reported in one sentence."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import psutil
import pytest

from foley.bundle import MANIFEST, graph_file
from foley_server.launcher import installation
from harness.models import replace_model

BIN = Path(__file__).resolve().parents[2] / ".venv" / "bin"
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
LIBRARY = f"libpython{PYTHON}.so.1.0"


def command(bundle: Path, *options: object) -> list[str]:
    """Return the arguments of `foley-server run` on free ports."""
    return ["run", f"--bundle={bundle}", "--grpc-port=0", "--metrics-port=0", *map(str, options)]


def startup_error(*arguments: object, **environment: object) -> str:
    """Run a command that must fail at start, well before Triton's own timeout of ten minutes; return its error."""
    variables = {**os.environ, **{name: str(value) for name, value in environment.items()}}
    done = subprocess.run([*map(str, arguments)], env=variables, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    message = done.stderr.strip()  # `foley` first ends its progress line
    assert message.startswith("error: ")
    assert len(message.splitlines()) == 1
    return message


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """A folder for PYTHONPATH with Triton's wheel, in which the stub for this Python is a copy (see `stub`)."""
    found, folder = installation.find(), tmp_path / "wheel"
    triton = folder / "pytriton" / "tritonserver"
    stub(folder).parent.mkdir(parents=True)
    (folder / "pytriton" / "__init__.py").touch()
    for part in found.binary.parents[1].iterdir():
        if part.name != "python_backend_stubs":
            (triton / part.name).symlink_to(part)
    (folder / "nvidia_pytriton.libs").symlink_to(found.libraries[0])
    assert found.stub
    shutil.copy(found.stub, stub(folder))
    return folder


def stub(wheel: Path) -> Path:
    return wheel / "pytriton" / "tritonserver" / "python_backend_stubs" / PYTHON / "triton_python_backend_stub"


def shared_library() -> Path:
    """Return the shared library of the Python that runs the tests."""
    return next(folder / LIBRARY for folder in installation.find().libraries if (folder / LIBRARY).is_file())


def require_missing_library(wheel: Path) -> str:
    """Make the stub depend on a library that does not exist, and return its name."""
    name = LIBRARY.replace("1.0", "0.0")
    stub(wheel).write_bytes(stub(wheel).read_bytes().replace(LIBRARY.encode(), name.encode()))
    return name


def test_libpython_outside_the_linker_path_is_found(tiny_bundle: Path, tmp_path: Path) -> None:
    """As in Pythons of pyenv, uv and conda, moved after the build: sysconfig's LIBDIR is another folder."""
    home, venv = tmp_path / "home", tmp_path / "venv"
    (home / "bin").mkdir(parents=True)
    (home / "lib").mkdir()
    shutil.copy(Path(sys.executable).resolve(), home / "bin" / "python3")
    shutil.copy(shared_library(), home / "lib")
    (home / "lib" / f"python{PYTHON}").symlink_to(sysconfig.get_path("stdlib"))
    subprocess.run([home / "bin" / "python3", "-m", "venv", "--without-pip", venv], check=True, timeout=60)
    packages = venv / "lib" / f"python{PYTHON}" / "site-packages"
    (packages / "packages.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")

    server = subprocess.Popen(
        [venv / "bin" / "python", "-c", "from foley_server.cli import main; main()", *command(tiny_bundle)],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        assert server.stdout.readline().startswith("ready ")
        loaded = {
            Path(file.path)
            for process in psutil.Process(server.pid).children(recursive=True)
            if "stub" in process.name()
            for file in process.memory_maps()
            if "libpython" in file.path
        }
        assert loaded == {home / "lib" / LIBRARY}
    finally:
        server.terminate()
        assert server.wait(60) == 0


def test_missing_libpython_is_reported(repository: Path, tiny_bundle: Path, wheel: Path) -> None:
    """As in Debian without the package libpython."""
    library = require_missing_library(wheel)
    generate = ["generate", repository / "examples" / "drumstick.mp4", "--text=wood", f"--bundle={tiny_bundle}"]
    for start in ([BIN / "foley-server", *command(tiny_bundle)], [BIN / "foley", *generate]):
        message = startup_error(*start, PYTHONPATH=wheel, FOLEY_SERVER="")
        assert library in message
        assert f"apt-get install libpython{PYTHON}`" in message


def test_ld_library_path_is_searched(wheel: Path, tmp_path: Path) -> None:
    (tmp_path / require_missing_library(wheel)).symlink_to(shared_library())
    check = "from foley_server.launcher import installation; installation.check_libraries(installation.find())"
    environment = {**os.environ, "PYTHONPATH": str(wheel), "LD_LIBRARY_PATH": str(tmp_path)}
    subprocess.run([sys.executable, "-c", check], env=environment, check=True, timeout=60)


def test_stub_that_exits_is_reported(tiny_bundle: Path, wheel: Path) -> None:
    """Triton itself would wait for ten minutes."""
    stub(wheel).unlink()
    stub(wheel).write_text("#!/bin/sh\necho 'Fatal Python error: no codec' >&2\nexit 1\n")
    stub(wheel).chmod(0o755)
    assert "Fatal Python error: no codec" in startup_error(
        BIN / "foley-server", *command(tiny_bundle), PYTHONPATH=wheel
    )


def test_model_whose_process_is_killed_is_reported(tiny_bundle: Path, tmp_path: Path) -> None:
    code = "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n"
    models = replace_model(tmp_path / "models", "vocoder", code)
    assert "vocoder" in startup_error(BIN / "foley-server", *command(tiny_bundle, "--models", models))


def test_graph_that_does_not_load_is_reported(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, bundle)
    graph, manifest = bundle / graph_file("vocoder"), bundle / MANIFEST
    graph.write_bytes(graph.read_bytes()[:1000])
    content = json.loads(manifest.read_text())
    content["files"][graph_file("vocoder")] = hashlib.sha256(graph.read_bytes()).hexdigest()
    manifest.write_text(json.dumps(content))
    message = startup_error(BIN / "foley-server", *command(bundle))
    assert "failed to load 'vocoder'" in message
    assert message.endswith("Protobuf parsing failed.")  # without Triton's stack trace


CAN_UNSHARE = subprocess.run(["unshare", "--map-root-user", "--net", "true"], capture_output=True).returncode == 0


@pytest.mark.skipif(not CAN_UNSHARE, reason="this machine makes no network namespaces")
def test_loopback_that_is_down_is_reported(tiny_bundle: Path) -> None:
    inside = ["unshare", "--map-root-user", "--net", BIN / "foley-server"]
    assert "cannot connect to 127.0.0.1:" in startup_error(*inside, *command(tiny_bundle))
