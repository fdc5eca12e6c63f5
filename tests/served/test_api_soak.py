"""The soak in short (in full: `foley-bench soak`), and that its oracle finds what is planted for it."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from foley_bench.leaks import leaks, look
from foley_bench.soak import soak

LEAKING = """
import os, subprocess, sys, threading, time
kept = []
for line in sys.stdin:
    for _ in range(20):
        if line == "descriptors\\n": kept.append(os.open("/dev/null", os.O_RDONLY))
        if line == "threads\\n": threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
        if line == "memory\\n": kept.append(bytearray(os.urandom(8 << 20)))
    if line == "processes\\n": kept.append(subprocess.Popen(["sleep", "600"]))
    if line == "shared memory\\n": open("/dev/shm/foley-triton-planted", "wb").write(bytes(1 << 20))
    if line == "uploads\\n": open(sys.argv[1] + "/left", "w").close()
    print("done", flush=True)
"""
KINDS = ("descriptors", "threads", "memory", "processes", "shared memory", "uploads")


@pytest.fixture
def leaking(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(
        [sys.executable, "-c", LEAKING, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    yield process
    subprocess.run(["pkill", "-P", str(process.pid)], check=False)
    process.kill()
    process.communicate()
    Path("/dev/shm/foley-triton-planted").unlink(missing_ok=True)


@pytest.mark.parametrize("kind", [*KINDS, "nothing"])
def test_25_a_planted_leak_is_found_and_named(leaking: "subprocess.Popen[str]", tmp_path: Path, kind: str) -> None:
    def do(what: str) -> None:
        assert leaking.stdin
        assert leaking.stdout
        leaking.stdin.write(f"{what}\n")
        leaking.stdin.flush()
        assert leaking.stdout.readline() == "done\n"

    do("nothing")
    before = look(leaking.pid, list(tmp_path.iterdir()))
    do(kind)
    found = leaks(before, look(leaking.pid, list(tmp_path.iterdir())))
    assert [one for one in found if one.startswith(kind)] if kind in KINDS else not found, found


def test_25_nothing_is_lost_doubled_or_leaked(tiny_bundle: Path, tmp_path: Path) -> None:
    outcome = soak(tiny_bundle, tmp_path, 30, 3, print)
    assert outcome.faults == []
    assert sum(outcome.ended.values()) >= 30
    assert outcome.ended["right"] > 10
