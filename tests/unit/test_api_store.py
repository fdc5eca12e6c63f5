"""Persistent state of long-running generations, including after crashes."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from foley.errors import OutputError, ServerFailure
from foley_server.jobs.media_store import MediaStore
from foley_server.jobs.store import Store
from foley_server.launcher.triton import claim_port

RCLONE = Path(sys.executable).with_name("rclone")


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "store.sqlite")
    yield store
    store.close()


def add(store, owner="alice", request_id=None):
    return store.add(uuid.uuid4().hex, owner, request_id or str(uuid.uuid4()), "digest", b"options")


def test_request_id_is_unique_per_owner(store):
    first = add(store, request_id="r")
    assert add(store, request_id="r") == first
    assert add(store, owner="bob", request_id="r").id != first.id
    assert store.find("alice", first.id) == first
    assert store.find("bob", first.id) is None
    assert store.find_request("alice", "r") == first
    assert [row.id for row in store.page("alice", 2**62, 10)] == [first.id]


def test_oldest_is_claimed_first_and_once(store):
    rows = [add(store) for _ in range(20)]
    with ThreadPoolExecutor(8) as pool:
        claimed = list(pool.map(lambda _: store.claim(), range(25)))
    found = [row for row in claimed if row]
    assert sorted(row.number for row in found) == [row.number for row in rows]
    assert {row.state for row in found} == {"running"}
    assert {row.attempts for row in found} == {1}


def test_generation_ends_once(store):
    row = add(store)
    store.claim()
    with ThreadPoolExecutor(8) as pool:
        ended = list(pool.map(lambda i: store.end(row.id, "succeeded" if i % 2 else "cancelled", b"x"), range(16)))
    assert ended.count(True) == 1
    store.requeue(row.id, counts=True)  # no effect after the end
    assert store.find("alice", row.id).ended
    assert store.claim() is None


def test_requeued_generation_is_claimed_next(store):
    first, second = add(store), add(store)
    store.claim()
    store.requeue(first.id, counts=False)
    assert store.count_ahead(second.number) == 1
    claimed = store.claim()
    assert (claimed.id, claimed.attempts) == (first.id, 1)
    store.requeue(first.id, counts=True)
    assert store.claim().attempts == 2
    assert (store.count("queued"), store.count("running")) == (1, 1)


def test_running_generations_are_queued_after_restart(tmp_path):
    store = Store(tmp_path / "store.sqlite")
    running, queued, done = add(store), add(store), add(store)
    store.end(done.id, "succeeded", b"result")
    assert store.claim().id == running.id
    store.close()
    reopened = Store(tmp_path / "store.sqlite")
    assert [reopened.by_id(row.id).state for row in (running, queued, done)] == ["queued", "queued", "succeeded"]
    assert reopened.expired(time.time() + 1) == [done.id]
    reopened.remove(done.id)
    assert reopened.by_id(done.id) is None
    assert reopened.reserved() == {done.id}  # until its media are removed
    reopened.close()


def test_id_is_reserved_until_accepted_or_released(store):
    for id in ("a", "b", "c"):
        store.reserve(id)
    row = store.add("a", "alice", "r", "digest", b"options")
    assert store.add("b", "alice", "r", "digest", b"options") == row
    assert store.reserved() == {"b", "c"}
    store.release("b")
    assert store.reserved() == {"c"}


KILLED = """
import sys, uuid
from pathlib import Path
from foley_server.jobs.store import Store
store = Store(Path(sys.argv[1]))
while True:
    row = store.add(uuid.uuid4().hex, "alice", str(uuid.uuid4()), "d", b"o")
    print("added", row.id, flush=True)
    claimed = store.claim()
    if claimed and claimed.number % 3:
        store.end(claimed.id, "succeeded", b"r")
        print("ended", claimed.id, flush=True)
"""


def test_sigkill_loses_no_acknowledged_change(tmp_path):
    path, added, ended = tmp_path / "store.sqlite", set(), set()
    rng = random.Random(0)
    for _ in range(6):
        process = subprocess.Popen([sys.executable, "-c", KILLED, path], stdout=subprocess.PIPE, text=True)
        timer = threading.Timer(rng.uniform(0.3, 0.6), process.kill)
        timer.start()
        output, _ = process.communicate()
        for line in output.splitlines():
            event, _, id = line.partition(" ")
            if len(id) == 32:
                (added if event == "added" else ended).add(id)
    assert len(added) > 20
    store = Store(path)
    kept = {row.id: row.state for row in store.page("alice", 2**62, 10**6)}
    assert added <= kept.keys()
    assert all(store.by_id(id).state == "succeeded" for id in ended)
    assert store.count("running") == 0
    assert store.count("queued") == sum(state != "succeeded" for state in kept.values())
    store.close()


def test_rejects_file_that_is_not_a_store(tmp_path):
    (tmp_path / "store.sqlite").write_bytes(os.urandom(5000))
    with pytest.raises(OutputError, match="--data"):
        Store(tmp_path / "store.sqlite")
    with pytest.raises(OutputError):
        Store(tmp_path / "nowhere" / "store.sqlite")


@pytest.fixture(params=["folder", "bucket"])
def media(request, tmp_path, monkeypatch):
    """A media store in a folder, and one in a bucket of a real S3 server on loopback."""
    if request.param == "folder":
        yield MediaStore(str(tmp_path / "media"))
        return
    (tmp_path / "buckets" / "foley").mkdir(parents=True)
    port = claim_port("127.0.0.1", 0)
    command = [RCLONE, "serve", "s3", "--addr", f"127.0.0.1:{port}", "--auth-key", "KEY,SECRET", tmp_path / "buckets"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    for name, value in {
        "AWS_ACCESS_KEY_ID": "KEY",
        "AWS_SECRET_ACCESS_KEY": "SECRET",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT": f"http://127.0.0.1:{port}",
        "AWS_ALLOW_HTTP": "true",
    }.items():
        monkeypatch.setenv(name, value)
    yield MediaStore("s3://foley/some/prefix")  # retries its first request until the server is ready
    server.send_signal(signal.SIGTERM)
    server.communicate()


def test_media_are_stored_and_removed(media, tmp_path):
    file = tmp_path / "video"
    file.write_bytes(os.urandom(3_000_000))
    media.put("a" * 32, "video", file)
    media.put("a" * 32, "take-0", b"old")
    media.put("a" * 32, "take-0", b"new")
    media.put("b" * 32, "take-0", b"other")
    assert media.get("a" * 32, "take-0") == b"new"
    media.fetch("a" * 32, "video", tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == file.read_bytes()
    media.remove("a" * 32)
    media.remove("a" * 32)
    assert media.get("b" * 32, "take-0") == b"other"
    with pytest.raises(ServerFailure, match="is missing"):
        media.get("a" * 32, "video")


def test_unusable_media_location_is_reported_at_start(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="media cannot be stored"):
        MediaStore(str(tmp_path / "file"))


PUTTING = """
import sys
from foley_server.jobs.media_store import MediaStore
media = MediaStore(sys.argv[1])
content = bytes([int(sys.argv[2])]) * 20_000_000
media.put("a", "take-0", content)
print("there is one", flush=True)
while True:
    media.put("a", "take-0", content)
"""


def test_put_is_atomic_under_sigkill(tmp_path):
    for number in range(1, 5):
        command = [sys.executable, "-c", PUTTING, tmp_path / "media", str(number)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        process.stdout.readline()
        time.sleep(0.05 + 0.02 * number)
        process.kill()
        process.communicate()
        content = MediaStore(str(tmp_path / "media")).get("a", "take-0")
        assert len(content) == 20_000_000
        assert len(set(content)) == 1
