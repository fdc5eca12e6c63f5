"""A real Triton that serves the tests' bundle, for all the tests of this folder that do not start their own."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from foley_bench.small_video import write_small_video
from foley_client.embedded import embedded_triton
from foley_pipeline.triton import TritonClient
from foley_pipeline.triton_backend import TritonBackend

BIN = Path(__file__).resolve().parents[2] / ".venv" / "bin"


@pytest.fixture(scope="session")
def triton(tiny_bundle: Path) -> Iterator[TritonClient]:
    with embedded_triton(tiny_bundle) as server:
        yield server


@pytest.fixture(scope="session")
def demo_triton() -> Iterator[TritonClient]:
    """The same for the bundle that ships, which is what is served by default."""
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("FOLEY_BUNDLE", raising=False)
        with embedded_triton() as server:
            yield server


@pytest.fixture(scope="session")
def backend(triton: TritonClient) -> TritonBackend:
    return TritonBackend(triton)


@pytest.fixture(scope="session")
def media(repository: Path) -> Path:
    folder = Path(os.environ.get("FOLEY_MEDIA", repository.parent / "shared" / "media"))
    if not folder.is_dir():
        pytest.skip(f"no media files at {folder}; set FOLEY_MEDIA to their folder")
    return folder


@pytest.fixture(scope="session")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second and a half of a bright bar that falls."""
    path = tmp_path_factory.mktemp("video") / "falling.mp4"
    write_small_video(path)
    return path


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test is served from what another one has kept, or from what the user has."""
    monkeypatch.setenv("FOLEY_CACHE", str(tmp_path_factory.mktemp("cache")))


Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def foley(triton: TritonClient, tmp_path: Path) -> Command:
    """The installed `foley` command in an empty folder, against the running server."""

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [BIN / "foley", *map(str, arguments)],
            cwd=tmp_path,
            env={"FOLEY_SERVER": triton.url, **os.environ, "COLUMNS": "200"},
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run
