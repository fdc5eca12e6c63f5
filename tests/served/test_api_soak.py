"""A short soak test (`make soak` runs it in full), and tests that the harness detects planted faults."""

import random
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from foley_pipeline.triton import TritonClient
from harness.api_server import api_server
from harness.leaks import leaks, look, settled, take
from harness.soak import Soak, check_jobs, soak

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
def test_leaks_names_planted_leak(leaking: "subprocess.Popen[str]", tmp_path: Path, kind: str) -> None:
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


@pytest.mark.long  # test_api_lifecycle.py tests each fault by itself
def test_soak_finds_no_faults(tiny_bundle: Path, tmp_path: Path) -> None:
    outcome = soak(tiny_bundle, tmp_path, 30, 3, print)
    assert outcome.faults == []
    assert sum(outcome.ended.values()) >= 30
    assert outcome.ended["right"] > 10


SITE = """
import os, threading, time
def leak():
    while True:
        time.sleep(0.02)
        os.open("/dev/null", os.O_RDONLY)
if "api" in open("/proc/self/cmdline").read().split("\\0"):
    threading.Thread(target=leak, daemon=True).start()
"""


def test_leak_of_api_server_is_detected(triton: TritonClient, tmp_path: Path) -> None:
    """A real API server with a planted leak, checked with the leak detection of the soak test and the fuzzer."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SITE)
    environment = {"PYTHONPATH": str(tmp_path / "site")}
    with api_server(tmp_path, environment, triton=triton.url) as server:
        before = take(server)
        found = leaks(before, settled(server, before, timeout_s=2))
    assert [one for one in found if one.startswith("descriptors")], found


def test_lost_and_wrong_generations_are_detected(triton: TritonClient, tmp_path: Path) -> None:
    """The soak test's check of long-running generations, with a lost one and a wrong one planted."""
    envelope = np.full(100, 0.1, np.float32)
    state = Soak(tmp_path, tmp_path, random.Random(0), print)
    with api_server(tmp_path, triton=triton.url) as server, server.client() as client:
        right, wrong, lost = (str(uuid.uuid4()) for _ in range(3))
        result = client.create(envelope=envelope, steps=1, request_id=right).wait()
        client.create(envelope=envelope, steps=1, request_id=wrong).wait()
        silent = replace(result, takes=[replace(result.takes[0], waveform=0 * result.waveform)])
        state.expected.update({right: result, wrong: silent, lost: result})
        check_jobs(state, server)
    assert state.outcome.faults == [f"{wrong} has another sound", f"{lost} is lost"]
