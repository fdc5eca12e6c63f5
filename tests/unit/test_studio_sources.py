"""The sources of the studio's page: type check, unit tests, and the built files in the package."""

import shutil
import subprocess
from pathlib import Path

import pytest

SOURCES = Path(__file__).resolve().parents[2] / "server" / "studio"
SHIPPED = SOURCES.parent / "foley_server" / "http" / "static"
pytestmark = pytest.mark.skipif(
    not (SOURCES / "node_modules").is_dir() or shutil.which("npm") is None,
    reason="`make test` brings what builds the page where there is Node.js",
)


def npm(*command: str, cwd: Path = SOURCES) -> None:
    completed = subprocess.run(["npm", "run", "--silent", *command], cwd=cwd, text=True, capture_output=True)
    assert completed.returncode == 0, completed.stdout + completed.stderr


def test_type_check() -> None:
    npm("check")


def test_source_tests() -> None:
    """Property tests with fast-check in server/studio/test."""
    npm("test")


def test_built_files_are_current(tmp_path: Path) -> None:
    shutil.copytree(SOURCES, tmp_path / "studio", ignore=shutil.ignore_patterns("node_modules", "build"))
    (tmp_path / "studio" / "node_modules").symlink_to(SOURCES / "node_modules")
    made = tmp_path / "foley_server" / "http" / "static"
    made.mkdir(parents=True)
    npm("build", cwd=tmp_path / "studio")
    files = sorted(made.iterdir())
    assert [file.name for file in files] == ["studio.js", "wavesurfer.js.LICENSE"]
    for file in files:
        assert file.read_bytes() == (SHIPPED / file.name).read_bytes(), f"{file.name} is old: npm run build"
