"""Triton's log becomes records of Python's logging; its last lines are kept."""

import logging
import os
from collections.abc import Callable
from typing import BinaryIO

import pytest

from foley_server.launcher import triton_log
from foley_server.launcher.triton_log import TritonLog

Read = Callable[[bytes], TritonLog]


@pytest.fixture
def read() -> Read:
    """`read(content)`: the log after a process has written `content` to a pipe, and ended."""

    def make(content: bytes) -> TritonLog:
        output, writing = os.pipe()
        log = TritonLog(os.fdopen(output, "rb"))
        stream: BinaryIO
        with os.fdopen(writing, "wb") as stream:
            stream.write(content)
        log.drain()
        return log

    return make


def test_lines_become_records_of_their_level(read: Read, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "triton")
    read(
        b'I1129 22:00:31.284005 1234 cuda_memory_manager.cc:117] "pool disabled"\n'
        b'W1129 22:00:31.284005 1234 pinned.cc:273] "falling back"\n'
        b"E1129 22:00:31.284005 1234 server.cc:241] \"no 'x'\"\n"
        b"F1129 22:00:31.284005 1234 server.cc:1] gone\n"
        b"| Model | Version | Status |\n"
        b"\n"
        b"MemoryError: \xff\n"
        b"the last line has no end"
    )
    assert [(one.levelname, one.getMessage()) for one in caplog.records] == [
        ("INFO", 'cuda_memory_manager.cc:117] "pool disabled"'),
        ("WARNING", 'pinned.cc:273] "falling back"'),
        ("ERROR", "server.cc:241] \"no 'x'\""),
        ("CRITICAL", "server.cc:1] gone"),
        ("DEBUG", "| Model | Version | Status |"),
        ("WARNING", "MemoryError: �"),  # output of a model's process
        ("WARNING", "the last line has no end"),
    ]


def test_memory_is_bounded(read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_log, "MAX_LINE_BYTES", 100)
    log = read(b"x" * 1050 + b"\n" + b"line\n" * 3000 + b"end\n")
    lines = log.lines()
    assert len(lines) == triton_log.KEPT_LINES
    assert lines[-1] == "end"
    assert max(map(len, read(b"x" * 1050).lines())) == 100
