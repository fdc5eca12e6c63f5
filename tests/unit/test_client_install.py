"""Dependencies of `pip install ./client`, and errors for libraries that only its extras install."""

import re
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OF_EXTRAS = ("fsspec", "jinja2", "matplotlib", "ray", "rich", "s3fs", "scipy", "typer")

# A module that is None in sys.modules cannot be imported, as if it were not installed.
WITHOUT = """
import sys
sys.modules.update(dict.fromkeys({missing!r}))
from foley_client.__main__ import main
sys.argv = ["foley", *{arguments!r}]
main()
"""


def foley_without(missing: tuple[str, ...], folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = WITHOUT.format(missing=missing, arguments=arguments)
    return subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` folder of a new environment with NumPy 2 and the SDK only."""
    folder = tmp_path_factory.mktemp("client")
    venv.create(folder, with_pip=True)
    components = [ROOT / component for component in ("core", "pipeline", "client")]
    subprocess.run([folder / "bin" / "pip", "install", "--quiet", "numpy>=2", *components], check=True)
    return folder / "bin"


def test_sdk_installs_with_numpy_2_and_without_heavy_dependencies(environment: Path) -> None:
    freeze = subprocess.run(
        [environment / "pip", "list", "--format=freeze"], capture_output=True, text=True, check=True
    )
    versions = dict(line.split("==") for line in freeze.stdout.splitlines())
    assert int(versions["numpy"].split(".")[0]) >= 2
    unwanted = re.compile(r"torch.*|onnx.*|nvidia-.*|triton|opencv.*|" + "|".join(OF_EXTRAS))
    assert not [name for name in versions if unwanted.fullmatch(name.lower())]
    assert {name for name in versions if name.startswith("foley")} == {"foley-core", "foley-pipeline", "foley-client"}


def test_sdk_works_with_numpy_2(environment: Path) -> None:
    program = """
import sys
from pathlib import Path
import numpy as np
import foley_client
from foley import envelope, media
video = media.probe(Path(sys.argv[1]))
print(np.__version__.split(".")[0], video.width, envelope.measure(np.ones(16000, np.float32)).max())
"""
    command = [environment / "python", "-c", program, ROOT / "examples" / "steel.mp4"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout == "2 344 1.0\n"


def test_command_without_typer_prints_one_sentence(environment: Path) -> None:
    run = subprocess.run([environment / "foley", "--help"], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr == "error: the command line needs typer and rich: pip install 'foley-client[cli]'\n"


def test_importing_the_sdk_imports_no_extras() -> None:
    program = f"import sys, foley_client; print(sorted(set({OF_EXTRAS!r}) & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"


@pytest.mark.parametrize(
    ("missing", "arguments", "sentence"),
    [
        ("matplotlib", ["generate", "a.mp4", "-o", "a.png"], "a .png output needs matplotlib: *[cli]"),
        ("matplotlib", ["envelope", "a.mp4", "-o", "a.csv", "-o", "a.png"], "a .png output needs matplotlib: *[cli]"),
        ("fsspec", ["render", "a.csv", "-o", "out"], "foley render needs fsspec: *[render]"),
        ("jinja2", ["render", "a.csv", "-o", "out"], "foley render needs jinja2: *[render]"),
        ("ray", ["render", "a.csv", "-o", "out", "--ray", "auto"], "--ray needs ray: *[ray]"),
    ],
)
def test_missing_extra_is_reported_in_one_sentence(
    tmp_path: Path, missing: str, arguments: list[str], sentence: str
) -> None:
    run = foley_without((missing,), tmp_path, *arguments)
    what, extra = sentence.split("*")
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr == f"error: {what}pip install 'foley-client{extra}'\n"
    assert not list(tmp_path.iterdir())


def test_generate_needs_no_render_dependencies(tmp_path: Path) -> None:
    run = foley_without(("fsspec", "jinja2", "ray", "matplotlib"), tmp_path, "generate", "missing.mp4", "-o", "a.wav")
    assert (run.returncode, run.stdout) == (2, "")
    assert "missing.mp4" in run.stderr
