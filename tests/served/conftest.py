"""Fixtures that serve a bundle with a real Triton, shared by the tests in this folder."""

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
    """A Triton that serves the default bundle, `demo`."""
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
    """A 1.5 s video of a falling bright bar."""
    path = tmp_path_factory.mktemp("video") / "falling.mp4"
    write_small_video(path)
    return path


@pytest.fixture(autouse=True)
def _isolated_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Isolate the cache of each test from other tests and from the user's cache."""
    monkeypatch.setenv("FOLEY_CACHE", str(tmp_path_factory.mktemp("cache")))


Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def foley(triton: TritonClient, tmp_path: Path) -> Command:
    """Run the installed `foley` command in an empty folder against the running server."""

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
