"""A short soak test (`make soak` runs it in full), and tests that the harness detects planted faults."""

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foley_client import GenerationResult
from foley_pipeline.triton import TritonClient
from foley_server.jobs.store import Store, new_id
from harness.api_server import api_server
from harness.cluster import Cluster, leftovers
from harness.leaks import leaks, look, settled, take
from harness.soak import soak
from harness.verdict import Ledger, check_jobs, check_removal

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
QUICK: dict[str, Any] = {"envelope": np.full(100, 0.1, np.float32), "text": "glass", "steps": 1}
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


@pytest.mark.timeout(900)
def test_soak_finds_no_faults(tiny_bundle: Path, tmp_path: Path) -> None:
    """Two APIs and two Tritons on Postgres and S3; a Triton and an API are killed."""
    outcome = soak(tiny_bundle, tmp_path, "postgres", 40, 3, print, (("Triton",), ("API",)))
    assert outcome.faults == []
    assert outcome.kills == {"Triton": 1, "API": 1}
    assert sum(outcome.ended.values()) == 40
    assert min(outcome.ended["generated"], outcome.ended["created and awaited"]) > 3


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_soak_on_sqlite_finds_no_faults(tiny_bundle: Path, tmp_path: Path) -> None:
    outcome = soak(tiny_bundle, tmp_path, "sqlite", 60, 4, print)
    assert outcome.faults == []
    assert set(outcome.kills) == {"Triton", "model", "API", "hanging API"}


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


def test_violated_guarantees_are_detected(triton: TritonClient, tmp_path: Path) -> None:
    """The soak's checks, on real APIs that do not share a store, and with callers that were told something else."""
    ledger = Ledger(print)
    (tmp_path / "other").mkdir()
    with (
        api_server(tmp_path, triton=triton.url) as server,
        api_server(tmp_path / "other", triton=triton.url) as other,
        server.client() as client,
    ):
        ids = {kind: str(uuid.uuid4()) for kind in ("right", "wrong", "changed", "ended", "lost", "twice")}
        jobs = {kind: client.create(**QUICK, request_id=id) for kind, id in ids.items() if kind != "lost"}
        result = jobs["right"].wait()
        silent = replace(result, takes=[replace(result.takes[0], waveform=0 * result.takes[0].waveform)])
        for kind, job in jobs.items():
            ledger.accept(ids[kind], job.name, silent if kind == "wrong" else result)
        ledger.accept(ids["lost"], "operations/lost", result)
        ledger.accept(ids["twice"], "operations/another", result)
        ledger.accepted[ids["changed"]].result = silent
        ledger.accepted[ids["ended"]].state = "cancelled"
        unknown = client.create(**QUICK)
        check_jobs(ledger, [server.grpc])
        faults = list(ledger.faults)
        check_jobs(ledger, [server.grpc, other.grpc])
    assert faults == [
        f"{ids['twice']} was accepted twice, as {jobs['twice'].name} and operations/another",
        f"{ids['lost']} is lost: {server.grpc} does not list it",
        f"{server.grpc} lists {unknown.name}, which no caller has created",
        f"the sound of {ids['wrong']} differs from that of an undisturbed run",
        f"the sound of {ids['changed']} has changed",
        f"{ids['ended']} is succeeded, after it was cancelled",
    ]
    assert f"{ids['right']} is lost: {other.grpc} does not list it" in ledger.faults
    assert "the APIs list different operations" in ledger.faults


def test_failed_and_cancelled_generations_are_detected() -> None:
    """A caller gets its sound, unless it cancels."""
    ledger, result = Ledger(print), GenerationResult(np.zeros(1, np.float32), [])
    for id in ("failed", "cancelled", "taken back"):
        ledger.accept(id, f"operations/{id}", result)
    ledger.take_back("taken back")
    for id, state in (("failed", "failed"), ("cancelled", "cancelled"), ("taken back", "cancelled")):
        ledger.see(id, state)
    assert ledger.faults == ["failed is failed", "cancelled is cancelled"]


def test_leftovers_in_store_and_media_are_detected(triton: TritonClient, tmp_path: Path) -> None:
    ledger, url = Ledger(print), f"sqlite:///{tmp_path / 'data' / 'generations.sqlite'}"
    cluster = Cluster([], [], url, None, tmp_path / "data" / "media", tmp_path)
    with api_server(tmp_path, triton=triton.url) as server, server.client() as client:
        job = client.create(**QUICK)
        ledger.accept("deleted", job.name, job.wait())
        check_removal(ledger, [server.grpc], cluster.rows, cluster.media_files)
        assert ledger.faults == []
        store = Store(url)
        store.receive(new_id(), "", "generate", "a process that is gone")
        store.close()
        planted = cluster.media / new_id() / "take-0"
        planted.parent.mkdir()
        planted.touch()
        check_removal(Ledger(print, faults=ledger.faults), [server.grpc], cluster.rows, cluster.media_files, 3)
    assert ledger.faults == [
        "1 rows are left in the store",
        f"1 files are left in the storage of media, such as {planted}",
    ]


def test_orphan_processes_are_detected() -> None:
    faults: list[str] = []
    orphan = "import subprocess; print(subprocess.Popen(['sleep', '600'], start_new_session=True, stdout=-3).pid)"
    with leftovers(faults.append):
        process = subprocess.run([sys.executable, "-c", orphan], stdout=subprocess.PIPE, text=True, check=True)
        pid = int(process.stdout)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert faults == ["a process is left: sleep 600"]
