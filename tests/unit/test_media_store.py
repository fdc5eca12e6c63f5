"""Media in a folder, and in a bucket of a real S3 server on loopback."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from foley.errors import MediaUnavailable, OutputError, ServerFailure
from foley_server.jobs.media_store import CHUNK_BYTES, MARKER, MediaStore
from foley_server.launcher.triton import claim_port
from harness.s3 import s3

A, B = "a" * 32, "b" * 32


@pytest.fixture(params=["folder", "bucket"])
def media(request, tmp_path, monkeypatch) -> Iterator[MediaStore]:
    if request.param == "folder":
        yield MediaStore(str(tmp_path / "media"))
        return
    (tmp_path / "buckets" / "foley").mkdir(parents=True)
    with s3(tmp_path / "buckets") as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        yield MediaStore("s3://foley/some/prefix")


def test_files_are_stored_and_removed(media, tmp_path):
    file = tmp_path / "video"
    file.write_bytes(os.urandom(3_000_000))

    async def scenario() -> None:
        await media.put(A, "video", file)
        await media.put(A, "1/take-0", b"old")
        await media.put(A, "1/take-0", b"new")
        await media.put(A, "2/take-0", b"of another start")
        await media.put(B, "1/take-0", b"other")
        assert await media.get(A, "1/take-0") == b"new"
        await media.fetch(A, "video", tmp_path / "again")
        assert (tmp_path / "again").read_bytes() == file.read_bytes()
        chunks = [chunk async for chunk in media.read(A, "video")]
        assert b"".join(chunks) == file.read_bytes()
        assert {len(chunk) for chunk in chunks[:-1]} == {CHUNK_BYTES}  # so none divides a sample
        await media.remove(A, "1/")
        assert await media.get(A, "2/take-0") == b"of another start"
        await media.remove_files(A, "video", "recording")
        with pytest.raises(ServerFailure, match="is missing"):
            await media.get(A, "video")
        await media.remove(A)
        await media.remove(A)
        with pytest.raises(ServerFailure, match="is missing"):
            await media.get(A, "2/take-0")
        assert await media.get(B, "1/take-0") == b"other"

    asyncio.run(scenario())


@pytest.mark.parametrize("id", ["", ".", "..", "photos", "0a1b2c3d-0000-4000-8000-000000000000", f"{A}/..", "A" * 32])
def test_only_ids_of_jobs_name_folders(tmp_path, id):
    (tmp_path / "media" / "photos").mkdir(parents=True)
    (tmp_path / "media" / "photos" / "one.jpg").write_bytes(b"1")
    media = MediaStore(str(tmp_path / "media"))
    with pytest.raises(ValueError, match="is not the id of a job"):
        asyncio.run(media.remove(id))
    assert (tmp_path / "media" / "photos" / "one.jpg").read_bytes() == b"1"


def test_location_of_another_service_is_refused(media, tmp_path):
    """Two services with databases of their own must not share a location, whoever comes first."""

    async def scenario() -> None:
        await media.mark("one")
        await media.mark("one")
        with pytest.raises(OutputError, match=MARKER):
            await media.mark("other")

    asyncio.run(scenario())


def test_unusable_media_location_is_reported_at_start(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="media cannot be stored"):
        MediaStore(str(tmp_path / "file"))


def test_unreachable_bucket_is_unavailable(media, monkeypatch, tmp_path):
    """A bucket that goes away makes calls retryable; it neither hangs nor loses the connection for good."""
    monkeypatch.setattr("foley_server.jobs.media_store.TIMEOUT_S", 2.0)
    if media._folder:
        (media._folder / A).write_text("a file where a folder must be")
        with pytest.raises(MediaUnavailable):
            asyncio.run(media.put(A, "video", b"x"))
        return
    port = claim_port("127.0.0.1", 0)
    monkeypatch.setenv("AWS_ENDPOINT", f"http://127.0.0.1:{port}")
    with pytest.raises(OutputError, match="media cannot be stored"):
        MediaStore("s3://foley/some/prefix")


PUTTING = """
import asyncio, sys
from foley_server.jobs.media_store import MediaStore

async def main():
    media = MediaStore(sys.argv[1])
    content = bytes([int(sys.argv[2])]) * 20_000_000
    await media.put("a" * 32, "take-0", content)
    print("there is one", flush=True)
    while True:
        await media.put("a" * 32, "take-0", content)

asyncio.run(main())
"""


def test_put_is_atomic_under_sigkill(tmp_path):
    for number in range(1, 5):
        command = [sys.executable, "-c", PUTTING, tmp_path / "media", str(number)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        process.stdout.readline()
        time.sleep(0.05 + 0.02 * number)
        process.kill()
        process.communicate()
        content = asyncio.run(MediaStore(str(tmp_path / "media")).get(A, "take-0"))
        assert len(content) == 20_000_000
        assert len(set(content)) == 1


def test_fetched_file_survives_removal(tmp_path):
    """A worker reads its copy although another process removes the job."""

    async def scenario() -> bytes:
        media = MediaStore(str(tmp_path / "media"))
        await media.put(A, "video", b"video")
        await media.fetch(A, "video", tmp_path / "copy")
        await media.remove(A)
        return Path(tmp_path / "copy").read_bytes()

    assert asyncio.run(scenario()) == b"video"
