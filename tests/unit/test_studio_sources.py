"""The studio's page: its sources' own tests, and that what the package holds was built of them."""

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
    ran = subprocess.run(["npm", "run", "--silent", *command], cwd=cwd, text=True, capture_output=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_types_fit() -> None:
    npm("check")


def test_edits_of_any_curve() -> None:
    """With fast-check; see server/studio/test."""
    npm("test")


def test_what_is_shipped_is_what_the_sources_make(tmp_path: Path) -> None:
    shutil.copytree(SOURCES, tmp_path / "studio", ignore=shutil.ignore_patterns("node_modules", "build"))
    (tmp_path / "studio" / "node_modules").symlink_to(SOURCES / "node_modules")
    made = tmp_path / "foley_server" / "http" / "static"
    made.mkdir(parents=True)
    npm("build", cwd=tmp_path / "studio")
    files = sorted(made.iterdir())
    assert [file.name for file in files] == ["studio.js", "wavesurfer.js.LICENSE"]
    for file in files:
        assert file.read_bytes() == (SHIPPED / file.name).read_bytes(), f"{file.name} is old: npm run build"
