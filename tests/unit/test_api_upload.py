"""Uploads: files in message chunks, with validated order and size, removed afterwards."""

import asyncio
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foley.errors import InvalidInput, MediaTooLarge, Overloaded, TimedOut
from foley_pipeline.api import foley_pb2 as pb
from foley_server.jobs import upload
from foley_server.jobs.upload import MAX_CHUNK, Uploads, read_first

V, A = pb.FILE_KIND_VIDEO, pb.FILE_KIND_AUDIO_PROMPT


def chunk(kind, data=b"x"):
    return pb.GenerateRequest(chunk=pb.FileChunk(kind=kind, data=data))


OPTIONS = pb.GenerateRequest(options=pb.GenerateOptions())


async def stream(messages):
    for message in messages:
        yield message


def receive(root, messages, kinds=(V,), max_bytes=10_000_000):
    """Return the contents of the uploaded files, and their hash."""

    async def run():
        with Uploads(root, max_bytes).folder() as folder:
            files = {kind: {V: folder.video, A: folder.recording}[kind] for kind in kinds}
            digest = await folder.receive(stream(messages), files)
            return [file.read_bytes() for file in files.values()], digest

    try:
        return asyncio.run(run())
    finally:
        assert list(root.iterdir()) == []


@given(
    st.lists(st.binary(min_size=1, max_size=50), min_size=1), st.lists(st.binary(min_size=1, max_size=50), min_size=1)
)
def test_upload_preserves_content(tmp_path_factory, video, recording):
    root = tmp_path_factory.mktemp("uploads")
    messages = [*(chunk(V, data) for data in video), *(chunk(A, data) for data in recording)]
    files, digest = receive(root, messages, (V, A))
    assert files == [b"".join(video), b"".join(recording)]
    content = bytes([V]) + files[0] + bytes([A]) + files[1]
    assert digest == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(
    ("messages", "kinds", "field"),
    [
        ([], (V,), "chunk.kind"),
        ([chunk(V)], (V, A), "chunk.kind"),
        ([chunk(A)], (V, A), "chunk.kind"),
        ([chunk(V), chunk(A), chunk(V)], (V, A), "chunk.kind"),
        ([chunk(A)], (V,), "chunk.kind"),
        ([chunk(V)], (), "chunk.kind"),
        ([chunk(0)], (V,), "chunk.kind"),
        ([chunk(77)], (V,), "chunk.kind"),
        ([chunk(V, b"")], (V,), "chunk.data"),
        ([chunk(V, b"x" * (MAX_CHUNK + 1))], (V,), "chunk.data"),
        ([OPTIONS, chunk(V)], (V,), "part"),
        ([chunk(V), OPTIONS], (V,), "part"),
        ([chunk(V), pb.GenerateRequest()], (V,), "part"),
    ],
)
def test_rejects_invalid_messages_and_leaves_no_files(tmp_path, messages, kinds, field):
    with pytest.raises(InvalidInput) as refused:
        receive(tmp_path, messages, kinds)
    assert refused.value.field == field


@pytest.mark.parametrize("size", [999, 1000, 1001])
def test_size_limit(tmp_path, size):
    messages = [chunk(V, b"x" * 500), chunk(V, b"x" * (size - 500))]
    if size <= 1000:
        assert len(receive(tmp_path, messages, max_bytes=1000)[0][0]) == size
    else:
        with pytest.raises(MediaTooLarge):
            receive(tmp_path, messages, max_bytes=1000)


@pytest.mark.parametrize("messages", [[], [chunk(V)], [pb.GenerateRequest()]])
def test_options_must_come_first(messages):
    with pytest.raises(InvalidInput) as refused:
        asyncio.run(read_first(stream(messages), "options"))
    assert refused.value.field == "part"
    assert asyncio.run(read_first(stream([OPTIONS]), "options")) == OPTIONS.options


def test_first_message_has_a_deadline(monkeypatch):
    async def silence():
        await asyncio.sleep(60)
        yield OPTIONS

    monkeypatch.setattr(upload, "FIRST_MESSAGE_TIMEOUT_S", 0.05)
    with pytest.raises(TimedOut, match="send `options`"):
        asyncio.run(read_first(silence(), "options"))


def test_upload_without_pauses_or_trickles(tmp_path, monkeypatch):
    """An upload that stops, or that is kept up by single bytes, ends before its total time limit."""

    async def paused():
        yield chunk(V)
        await asyncio.sleep(60)

    async def trickle():
        for _ in range(1000):
            yield chunk(V)
            await asyncio.sleep(0.01)

    async def run(messages):
        with Uploads(tmp_path, 10_000_000).folder() as folder:
            await asyncio.wait_for(folder.receive(messages, {V: folder.video}), 20)

    monkeypatch.setattr(upload, "IDLE_TIMEOUT_S", 0.1)
    monkeypatch.setattr(upload, "GRACE_S", 0.2)
    with pytest.raises(TimedOut, match="nothing was uploaded"):
        asyncio.run(run(paused()))
    with pytest.raises(TimedOut, match="slower than 8 KiB/s"):
        asyncio.run(run(trickle()))


def test_upload_stops_before_the_disk_is_full(tmp_path, monkeypatch):
    monkeypatch.setattr(upload, "SPACE_CHECK_BYTES", 1000)

    async def run(reserve):
        with Uploads(tmp_path, 10_000_000, reserve).folder() as folder:
            await folder.receive(stream([chunk(V, b"x" * 600)] * 10), {V: folder.video})

    asyncio.run(run(0))
    with pytest.raises(Overloaded, match="disk is nearly full") as refused:
        asyncio.run(run(2**62))
    assert refused.value.retry_after_s
    assert list(tmp_path.iterdir()) == []
