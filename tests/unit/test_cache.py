"""The cache on disk returns exactly what was stored or nothing, and its failures are ignored."""

import os
import stat
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from foley_pipeline.cache import Cache, default_folder
from foley_pipeline.hashing import content_sha256

ENTRY = np.arange(6, dtype=np.float32)
ABOUT = ("prompt", "text", "a stick hits metal")
FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
WORDS = st.lists(st.text(max_size=20), max_size=4)


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def the_entry(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "some" / "results"


@pytest.fixture
def cache(folder: Path) -> Cache:
    """A cache with one entry."""
    cache = Cache(folder)
    cache.put(ABOUT, ENTRY)
    return cache


@given(about=WORDS, array=arrays(np.float32, array_shapes(min_dims=0, max_dims=3, min_side=0), elements=FINITE))
def test_round_trip_is_bit_identical(about: list[str], array: np.ndarray) -> None:
    with tempfile.TemporaryDirectory() as folder:
        cache = Cache(Path(folder))
        assert cache.get(about, array.shape) is None
        cache.put(about, array)
        found = cache.get(about, array.shape)
        assert found is not None
        assert found.dtype == np.float32
        assert found.shape == array.shape
        assert found.tobytes() == array.tobytes()  # includes the sign of zero
        assert found.flags.writeable


@given(one=WORDS, other=WORDS)
def test_key_depends_on_every_word(one: list[str], other: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        cache = Cache(Path(folder))
        cache.put(one, ENTRY)
        assert (cache.get(other, ENTRY.shape) is None) == (one != other)
        assert cache.get(one, (len(ENTRY), 1)) is None
        assert cache.get([*one, ""], ENTRY.shape) is None


@given(sizes=st.lists(st.integers(0, 300), max_size=30), limit=st.integers(0, 2000))
def test_size_limit_is_enforced(sizes: list[int], limit: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        cache = Cache(Path(folder), limit)
        for i, length in enumerate(sizes):
            cache.put([str(i)], np.zeros(length, np.float32))
            assert size(Path(folder)) <= limit


def test_least_recently_used_entry_is_evicted(folder: Path) -> None:
    cache = Cache(folder, 3 * (32 + ENTRY.nbytes))
    seen: set[Path] = set()
    for i in range(3):
        cache.put([str(i)], ENTRY)
        (new,) = set(folder.iterdir()) - seen
        seen.add(new)
        os.utime(new, (0, 1e9 + i))
    assert cache.get(["0"], ENTRY.shape) is not None
    cache.put(["3"], ENTRY)
    kept = [i for i in range(4) if cache.get([str(i)], ENTRY.shape) is not None]
    assert kept == [0, 2, 3]


def test_entry_larger_than_the_cache_evicts_nothing(cache: Cache, folder: Path) -> None:
    small = Cache(folder, size(folder))
    small.put(["large"], np.zeros(1000, np.float32))
    assert small.get(ABOUT, ENTRY.shape) is not None
    assert small.get(["large"], (1000,)) is None


@given(position=st.integers(0, 32 + ENTRY.nbytes - 1), bit=st.integers(0, 7))
def test_changed_bit_is_a_miss(position: int, bit: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        cache = Cache(Path(name))
        cache.put(ABOUT, ENTRY)
        path = the_entry(Path(name))
        content = bytearray(path.read_bytes())
        content[position] ^= 1 << bit
        path.write_bytes(content)
        assert cache.get(ABOUT, ENTRY.shape) is None
        cache.put(ABOUT, ENTRY)  # replaces the damaged entry
        assert cache.get(ABOUT, ENTRY.shape) is not None


@given(length=st.integers(0, 100))
def test_entry_of_wrong_length_is_a_miss(length: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        cache = Cache(Path(name))
        cache.put(ABOUT, ENTRY)
        path = the_entry(Path(name))
        content = path.read_bytes()
        path.write_bytes((content * 2)[:length])
        assert (cache.get(ABOUT, ENTRY.shape) is None) == (length != len(content))


def test_entry_under_another_name_is_a_miss(cache: Cache, folder: Path) -> None:
    path = the_entry(folder)
    cache.put(["other"], ENTRY + 1)
    (other,) = set(folder.iterdir()) - {path}
    path.write_bytes(other.read_bytes())
    assert cache.get(ABOUT, ENTRY.shape) is None


def test_entry_with_nan_is_a_miss(cache: Cache) -> None:
    cache.put(["broken"], np.array([1, np.nan], np.float32))
    assert cache.get(["broken"], (2,)) is None


def test_non_file_entry_is_a_miss(cache: Cache, folder: Path) -> None:
    """A folder, a pipe without a writer, a circular link."""
    path = the_entry(folder)
    path.unlink()
    for create in (path.mkdir, lambda: os.mkfifo(path), lambda: path.symlink_to(path.name)):
        create()
        assert cache.get(ABOUT, ENTRY.shape) is None
        cache.put(ABOUT, ENTRY)
        path.rmdir() if path.is_dir() else path.unlink()


def test_unusable_folder_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    for folder in (tmp_path / "file", tmp_path / "file" / "results", Path("/proc/nowhere"), tmp_path / ("x" * 300)):
        cache = Cache(folder)
        cache.put(ABOUT, ENTRY)
        assert cache.get(ABOUT, ENTRY.shape) is None


def test_full_disk_is_ignored(folder: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> int:
        path.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    cache.put(["new"], ENTRY)
    monkeypatch.undo()
    assert cache.get(["new"], ENTRY.shape) is None
    assert cache.get(ABOUT, ENTRY.shape) is not None
    the_entry(folder)  # no partial file is left


def test_read_only_folder_is_still_read(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(30, "Read-only file system")

    for name in ("utime", "scandir", "unlink"):
        monkeypatch.setattr(os, name, refuse)
    for name in ("mkdir", "write_bytes", "unlink", "replace"):
        monkeypatch.setattr(Path, name, refuse)
    assert cache.get(ABOUT, ENTRY.shape) is not None
    cache.put(["new"], ENTRY)
    assert cache.get(["new"], ENTRY.shape) is None


def test_folder_is_private_and_file_names_are_hashes(cache: Cache, folder: Path) -> None:
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    cache.put(["../../outside", "\0", "a/b"], ENTRY)
    assert all(len(path.name) == 64 and int(path.name, 16) for path in folder.iterdir())


def test_eviction_removes_only_cache_files(folder: Path) -> None:
    """Also partial files of killed processes."""
    folder.mkdir(parents=True)
    unrelated = [folder / "take.wav", folder / "notes", folder / ".foley-0123456789abcdef.partial.mp4"]
    partial = folder / ".foley-0123456789abcdef.partial"
    for path in (*unrelated, partial):
        path.write_bytes(bytes(500))
        os.utime(path, (0, 0))
    cache = Cache(folder, 100)
    cache.put(ABOUT, ENTRY)
    assert cache.get(ABOUT, ENTRY.shape) is not None
    assert all(path.exists() for path in unrelated)
    assert not partial.exists()


PROGRAM = """
import sys
from pathlib import Path
import numpy as np
from foley_pipeline.cache import Cache
cache = Cache(Path(sys.argv[1]), 2000)
for i in range(300):
    about, array = [str(i % 7)], np.full(50, i % 7, np.float32)
    found = cache.get(about, array.shape)
    assert found is None or (found == array).all()
    cache.put(about, array)
"""


def test_concurrent_processes_and_threads(folder: Path) -> None:
    """Space for eight entries, so that the processes evict each other's entries."""
    others = [subprocess.Popen([sys.executable, "-c", PROGRAM, str(folder)]) for _ in range(3)]
    cache = Cache(folder, 2000)

    def work(number: int) -> bool:
        for i in range(200):
            about, array = [f"{number} {i % 5}"], np.full(50, i, np.float32)
            cache.put(about, array)
            found = cache.get(about, array.shape)
            assert found is None or found.tobytes() == array.tobytes()
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))
    assert [other.wait(120) for other in others] == [0, 0, 0]
    cache.put(ABOUT, ENTRY)
    assert size(folder) <= 2000
    assert all(len(path.name) == 64 for path in folder.iterdir())


def test_folder_follows_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Next to the files of `foley-export fetch`."""
    for name in ("FOLEY_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/someone")
    assert default_folder() == Path("/home/someone/.cache/foley/results")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert default_folder() == Path("/home/someone/.cache/foley/results")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache")
    assert default_folder() == Path("/var/cache/foley/results")
    monkeypatch.setenv("FOLEY_CACHE", "~/mine")
    assert default_folder() == Path("/home/someone/mine/results")
    monkeypatch.setenv("FOLEY_CACHE", "~nobody-of-this-name/mine")
    assert default_folder() is None


def test_changed_file_is_hashed_again(tmp_path: Path) -> None:
    path = tmp_path / "video.mp4"
    path.write_bytes(b"one")
    first = content_sha256(path)
    assert content_sha256(path) == first
    path.write_bytes(b"two!")
    assert content_sha256(path) != first
    path.write_bytes(b"one")
    assert content_sha256(path) == first
