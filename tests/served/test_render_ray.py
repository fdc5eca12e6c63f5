"""`foley render --ray` on Ray's test cluster: two nodes with a Triton each, one of which loses its worker."""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from foley_bench.ray_nodes import ray_cluster
from foley_bench.small_video import write_manifest
from foley_client.render.storage import SIDECAR

BIN = Path(__file__).resolve().parents[2] / ".venv" / "bin"
ROWS = 8
MARK = "FOLEY_RAY_TEST"


def workers(mark: str) -> list[psutil.Process]:
    """Return Ray's worker processes of this test."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if "ray::Worker" in " ".join(process.cmdline()) and process.environ().get(MARK) == mark:
                found.append(process)
    return found


def test_rows_use_all_nodes_and_survive_worker_loss(
    foley: Callable[..., "subprocess.CompletedProcess[str]"],
    tiny_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(MARK, str(os.getpid()))
    manifest = write_manifest(tmp_path, ROWS)
    names = [json.loads(line)["output"] for line in manifest.read_text().splitlines()]
    command = [BIN / "foley", "render", manifest, "-o", tmp_path / "ray", "--bundle", tiny_bundle, "--no-cache"]
    done: Counter[str] = Counter()
    nodes: set[str] = set()
    cores = sorted(os.sched_getaffinity(0)) * 2  # a worker of the suite has one core: both nodes run on it
    with ray_cluster(cores[:2]) as address:
        process = subprocess.Popen(
            [*command, "--json", "--workers", "2", "--ray", address],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout
        killed = False
        for line in process.stdout:
            event = json.loads(line)
            if event["event"] == "done":
                done[event["output"]] += 1
                nodes.add(event["worker"])
            if not killed and len(nodes) == 2:
                victim, *_ = workers(str(os.getpid()))
                victim.kill()
                killed = True
        _, message = process.communicate(timeout=120)
        assert process.returncode == 0, message
        assert killed
        assert not [one for one in workers(str(os.getpid())) if one.is_running()]
    assert done == dict.fromkeys(names, 1)
    assert len(nodes) == 2

    local = foley("render", manifest, "-o", tmp_path / "here", "--no-cache")
    assert local.returncode == 0, local.stderr
    for name in names:
        assert (tmp_path / "ray" / name).read_bytes() == (tmp_path / "here" / name).read_bytes()
        assert (tmp_path / "ray" / (name + SIDECAR)).is_file()


def test_render_imports_without_ray() -> None:
    """Only `--ray` imports Ray."""
    code = "import sys; sys.modules['ray'] = None; import foley_client.cli, foley_client.render.command"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
