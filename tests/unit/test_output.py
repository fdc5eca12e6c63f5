"""Output files: links are followed, permissions are kept, and nothing else is modified."""

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from foley.errors import OutputError
from foley.output import OutputFiles, check_destination, replacing
from foley.sound_file import SOUND_EXTENSIONS, write_sound
from foley_client.render.storage import Output
from foley_pipeline.cache import Cache

SOUND = np.zeros(100, np.float32)
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")


def write(path: Path) -> None:
    check_destination(path, SOUND_EXTENSIONS)
    with replacing(path) as temporary:
        write_sound(temporary, SOUND, 16_000)


def render(path: Path) -> None:
    with Output(str(path.parent), path.parent).writing(path.name) as temporary:
        write_sound(temporary, SOUND, 16_000)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def is_sound(path: Path) -> bool:
    return path.read_bytes()[:4] == b"RIFF"


@pytest.fixture(params=[write, render])
def put(request: pytest.FixtureRequest) -> Callable[[Path], None]:
    """Write a sound like `foley generate`, or like the render farm."""
    return request.param


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    return folder


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "results").mkdir()
    return tmp_path / "results" / "sound.wav"


def assert_rejects(put: Callable[[Path], None], path: Path, words: str) -> None:
    before = sorted(path.parent.iterdir())
    with pytest.raises(OutputError, match=words):
        put(path)
    assert sorted(path.parent.iterdir()) == before


def test_symlink_is_kept_and_its_target_written(put: Callable[[Path], None], path: Path, elsewhere: Path) -> None:
    (elsewhere / "blob").write_bytes(b"the result of yesterday")
    (elsewhere / "link").symlink_to("blob")
    path.symlink_to("../elsewhere/link")
    put(path)
    assert path.readlink() == Path("../elsewhere/link")
    assert (elsewhere / "link").readlink() == Path("blob")
    assert is_sound(elsewhere / "blob")
    assert {one.name for one in (*path.parent.iterdir(), *elsewhere.iterdir())} == {"sound.wav", "link", "blob"}


def test_symlink_to_another_file_system_is_followed(put: Callable[[Path], None], path: Path) -> None:
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == path.parent.stat().st_dev:
        pytest.skip("there is no other file system")
    target = other / f"foley-test-{os.getpid()}.wav"
    path.symlink_to(target)
    try:
        put(path)
        assert path.is_symlink()
        assert is_sound(target)
    finally:
        target.unlink(missing_ok=True)


def test_broken_symlink_creates_its_target(put: Callable[[Path], None], path: Path, elsewhere: Path) -> None:
    path.symlink_to(elsewhere / "new")
    put(path)
    assert path.is_symlink()
    assert is_sound(elsewhere / "new")
    path.unlink()
    path.symlink_to(elsewhere / "missing" / "new")
    assert_rejects(put, path, "does not exist|cannot write")


def test_rejects_symlinks_to_folder_pipe_and_itself(put: Callable[[Path], None], path: Path, elsewhere: Path) -> None:
    path.symlink_to(elsewhere)
    assert_rejects(put, path, "is a folder")
    path.unlink()
    os.mkfifo(elsewhere / "pipe")
    path.symlink_to(elsewhere / "pipe")
    assert_rejects(put, path, "not a regular file")
    path.unlink()
    path.symlink_to(path.name)
    assert_rejects(put, path, "is a symbolic link to itself")


def test_hard_links_keep_the_old_content(put: Callable[[Path], None], path: Path, elsewhere: Path) -> None:
    (elsewhere / "kept").write_bytes(b"the result of yesterday")
    path.hardlink_to(elsewhere / "kept")
    put(path)
    assert is_sound(path)
    assert (elsewhere / "kept").read_bytes() == b"the result of yesterday"


@pytest.mark.parametrize("kept", [0o600, 0o664, 0o640])
def test_permissions_are_kept(put: Callable[[Path], None], path: Path, kept: int) -> None:
    path.touch()
    path.chmod(kept)
    put(path)
    assert is_sound(path)
    assert mode(path) == kept


def test_temporary_file_has_permissions_of_the_target(path: Path) -> None:
    path.touch()
    path.chmod(0o600)
    with replacing(path) as temporary:
        write_sound(temporary, SOUND, 16_000)
        assert mode(temporary) == 0o600


@pytest.mark.parametrize(("umask", "expected"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_new_file_follows_umask(put: Callable[[Path], None], path: Path, umask: int, expected: int) -> None:
    before = os.umask(umask)
    try:
        put(path)
    finally:
        os.umask(before)
    assert mode(path) == expected


@as_root
def test_owner_is_kept(put: Callable[[Path], None], path: Path) -> None:
    path.touch()
    os.chown(path, 1234, 4321)
    path.chmod(0o640)
    put(path)
    assert is_sound(path)
    assert (path.stat().st_uid, path.stat().st_gid, mode(path)) == (1234, 4321, 0o640)


def test_rejects_read_only_file(put: Callable[[Path], None], path: Path) -> None:
    path.write_bytes(b"the result of yesterday")
    path.chmod(0o444)
    if os.access(path, os.W_OK):
        pytest.skip("root may write anywhere")
    assert_rejects(put, path, "read-only")
    assert path.read_bytes() == b"the result of yesterday"


def test_replaced_files_are_restored_after_failure(tmp_path: Path) -> None:
    old, new, last = (tmp_path / name for name in ("old.wav", "new.wav", "last.wav"))
    old.write_bytes(b"the result of yesterday")
    old.chmod(0o640)

    def write_all() -> None:
        with OutputFiles() as files:
            for path in (old, new, last):
                with files.replacing(path) as temporary:
                    write_sound(temporary, SOUND, 16_000)
            last.mkdir()

    with pytest.raises(OutputError, match=r"last\.wav"):
        write_all()
    assert sorted(tmp_path.iterdir()) == [last, old]
    assert old.read_bytes() == b"the result of yesterday"
    assert mode(old) == 0o640


def test_partial_files_of_killed_processes_are_removed(tmp_path: Path) -> None:
    """A render into a folder keeps partial files of running processes."""
    program = (
        "import sys, time; from pathlib import Path; from foley.output import replacing\n"
        "with replacing(Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_bytes(b'half'); print(temporary, flush=True); time.sleep(600)"
    )

    def partial_files() -> set[str]:
        return {str(path) for path in tmp_path.glob(".foley-*.partial*")}

    def render_here() -> None:
        with Output(str(tmp_path), tmp_path).claimed(["c.wav"]):
            pass

    writers, written = [], []
    for name in ("a.wav", "b.mp4"):
        writer = subprocess.Popen([sys.executable, "-c", program, tmp_path / name], stdout=subprocess.PIPE, text=True)
        assert writer.stdout
        writers.append(writer)
        written.append(writer.stdout.readline().strip())
    try:
        render_here()
        assert partial_files() == set(written)
        writers[0].kill()
        writers[0].wait()
        render_here()
        assert partial_files() == {written[1]}
    finally:
        for writer in writers:
            writer.kill()
            writer.communicate()
    render_here()
    assert partial_files() == set()


def test_cache_does_not_follow_symlinks(tmp_path: Path) -> None:
    cache, values = Cache(tmp_path / "cache"), np.ones(3, np.float32)
    cache.put(["about"], values)
    (entry,) = cache.folder.iterdir()
    entry.unlink()
    (tmp_path / "theirs").write_bytes(b"theirs")
    entry.symlink_to(tmp_path / "theirs")
    cache.put(["about"], values)
    assert (tmp_path / "theirs").read_bytes() == b"theirs"
    assert cache.get(["about"], (3,)) is not None
