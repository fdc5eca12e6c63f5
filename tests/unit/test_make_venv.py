"""deploy/make_venv.sh: the Python that `make demo` and `make install` use.

The interpreters and uv are scripts that respond like the real ones, since one machine has only some of them.
"""

import shutil
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ("cat", "cp", "head", "mkdir", "mktemp", "paste", "rm", "sh")

INTERPRETER = """#!/bin/sh
case "$*" in
*version_info*) echo {version} ;;
*ensurepip*) exit {ensurepip} ;;
*Python.h*) exit {headers} ;;
"-m venv "*)
    [ {ensurepip} = 0 ] || exit 1
    mkdir -p "$3/bin"
    cp {folder}/pip "$3/bin/pip"
    echo "{name} $*" >>{log} ;;
*) exit 9 ;;
esac
"""
PIP = """#!/bin/sh
echo "pip $*" >>{log}
cp {folder}/uv-of-pypi "${{0%/pip}}/uv"
"""
UV = """#!/bin/sh
[ "$*" = --version ] && exit 0
echo "uv $*" >>{log}
[ -z "{error}" ] || {{ echo "{error}" >&2 && exit 2; }}
"""
BROKEN = "#!/bin/sh\necho 'pyenv: command not found' >&2\nexit 127\n"


@dataclass
class Machine:
    """A folder of programs that is the entire PATH."""

    folder: Path
    log: list[str] = field(default_factory=list)

    def add(self, name: str, text: str) -> None:
        path = self.folder / name
        path.write_text(text)
        path.chmod(0o755)

    def interpreter(self, name: str, version: str, ensurepip: bool = True, headers: bool = True) -> None:
        values = {"version": version, "ensurepip": int(not ensurepip), "headers": int(not headers)}
        self.add(name, INTERPRETER.format(name=name, folder=self.folder, log=self.folder / "log", **values))

    def uv(self, name: str = "uv", error: str = "") -> None:
        self.add(name, UV.format(log=self.folder / "log", error=error))

    def compiler(self) -> None:
        self.add("cc", "#!/bin/sh\n")
        self.add("c++", "#!/bin/sh\n")

    def make_venv(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the script for the folder `venv`; afterwards, `log` holds the calls of the programs."""
        run = subprocess.run(
            ["/bin/sh", ROOT / "deploy" / "make_venv.sh", "venv", *arguments],
            cwd=self.folder,
            env={"PATH": str(self.folder), "TMPDIR": str(self.folder)},
            capture_output=True,
            text=True,
            timeout=60,
        )
        log = self.folder / "log"
        self.log = log.read_text().splitlines() if log.exists() else []
        return run


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    for tool in TOOLS:
        (tmp_path / tool).symlink_to(shutil.which(tool) or "")
    made = Machine(tmp_path)
    made.add("pip", PIP.format(folder=tmp_path, log=tmp_path / "log"))
    return made


@pytest.mark.parametrize(
    ("interpreters", "compiler", "chosen"),
    [
        ({"python3": "3.11", "python3.11": "3.11", "python3.12": "3.12"}, False, "python3.12"),
        ({"python3": "3.12", "python3.11": "3.11"}, False, "python3"),
        ({"python3": "3.14", "python3.10": "3.10", "python3.9": "3.9"}, True, "python3.10"),
        ({"python3": "3.13", "python3.13": "3.13", "python3.11": "3.11"}, True, "python3.11"),
        ({"python3": "3.13"}, True, "python3"),
        ({"python": "3.12"}, False, "python"),
    ],
)
def test_newest_supported_python_is_used(
    machine: Machine, interpreters: Mapping[str, str], compiler: bool, chosen: str
) -> None:
    for name, version in interpreters.items():
        machine.interpreter(name, version)
    if compiler:
        machine.compiler()
    run = machine.make_venv()
    assert (run.returncode, run.stderr) == (0, "")
    assert machine.log == [f"{chosen} -m venv venv"]


def test_python_that_fails_or_lacks_ensurepip_is_skipped(machine: Machine) -> None:
    machine.add("python3.12", BROKEN)
    machine.interpreter("python3.11", "3.11", ensurepip=False)
    machine.interpreter("python3.10", "3.10")
    assert machine.make_venv().returncode == 0
    assert machine.log == ["python3.10 -m venv venv"]


UV_VENV = "uv venv --quiet --seed --python 3.12 venv"


@pytest.mark.parametrize(
    ("version", "compiler", "headers"),
    [("3.14", True, True), ("3.13", False, True), ("3.13", True, False), ("3.9", True, True)],
)
def test_uv_on_path_installs_python(machine: Machine, version: str, compiler: bool, headers: bool) -> None:
    machine.interpreter("python3", version, headers=headers)
    machine.uv()
    if compiler:
        machine.compiler()
    assert machine.make_venv().returncode == 0
    assert machine.log == [UV_VENV]


def test_uv_is_installed_from_pypi(machine: Machine) -> None:
    machine.interpreter("python3", "3.14")
    machine.uv("uv-of-pypi")
    before = set(machine.folder.iterdir())
    assert machine.make_venv().returncode == 0
    assert machine.log[1:] == ["pip install --quiet --disable-pip-version-check uv", UV_VENV]
    assert set(machine.folder.iterdir()) - before == {machine.folder / "log"}  # the environment of uv is removed


def assert_one_sentence(run: subprocess.CompletedProcess[str], words: Iterable[str]) -> None:
    assert run.returncode == 1
    assert run.stdout == ""
    assert run.stderr.startswith("error: ")
    assert run.stderr.count("\n") == 1
    for word in words:
        assert word in run.stderr


def test_missing_python_is_reported(machine: Machine) -> None:
    assert_one_sentence(machine.make_venv(), ["no Python 3.10 to 3.12", "python3-venv", "PYTHON"])


def test_missing_venv_is_reported(machine: Machine) -> None:
    machine.interpreter("python3", "3.11", ensurepip=False)
    assert_one_sentence(machine.make_venv(), ["no Python 3.10 to 3.12", "install python3-venv"])


def test_failed_download_is_reported_with_reason(machine: Machine) -> None:
    machine.interpreter("python3", "3.14")
    machine.uv(error="error: Request failed after 3 retries\n  cause: dns error")
    assert_one_sentence(machine.make_venv(), ["Request failed after 3 retries", "dns error", "set PYTHON"])


def test_specified_python_is_used(machine: Machine) -> None:
    machine.interpreter("python3.12", "3.12")
    machine.interpreter("mine", "3.10")
    assert machine.make_venv("mine").returncode == 0
    assert machine.log == ["mine -m venv venv"]


@pytest.mark.parametrize(
    ("version", "ensurepip", "words"),
    [
        ("3.14", True, "needs Python 3.10 to 3.13"),
        ("3.9", True, "needs Python 3.10 to 3.13"),
        ("3.13", True, "install a C++ compiler"),
        ("3.12", False, "install python3-venv"),
    ],
)
def test_unusable_specified_python_is_reported(machine: Machine, version: str, ensurepip: bool, words: str) -> None:
    machine.interpreter("python3.12", "3.12")  # not used as a fallback
    machine.interpreter("mine", version, ensurepip=ensurepip)
    assert_one_sentence(machine.make_venv("mine"), ["mine cannot be used", words])
    assert machine.log == []


def test_missing_specified_python_is_reported(machine: Machine) -> None:
    assert_one_sentence(machine.make_venv("python3.99"), ["python3.99 cannot be used", "does not start"])


def test_make_passes_python_variable(machine: Machine) -> None:
    command = ["make", "--dry-run", "demo", f"VENV={machine.folder / 'venv'}"]
    for arguments, passed in (([], "''"), (["PYTHON=/opt/python 3/bin/python"], "'/opt/python 3/bin/python'")):
        run = subprocess.run([*command, *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
        assert f"sh deploy/make_venv.sh {machine.folder / 'venv'} {passed}\n" in run.stdout
