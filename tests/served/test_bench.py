"""`foley-bench`: measurements are complete and consistent. No test depends on speed."""

import json
import re
import subprocess
from collections.abc import Callable
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from typer.testing import CliRunner

from foley.bundle import read
from foley.errors import OutputError
from foley.stages import networks
from foley_bench import latency
from foley_bench.cli import app
from foley_bench.throughput import CALLERS, SHARES
from foley_pipeline.triton import TritonClient

BIN = Path(__file__).resolve().parents[2] / ".venv" / "bin"
SHORT_S = 0.5


@pytest.fixture(scope="module")
def short_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("video") / "short.mp4"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("h264", rate=30)
        stream.width, stream.height = 64, 48
        for i in range(round(SHORT_S * 30)):
            frame = np.roll(np.arange(48 * 64 * 3, dtype=np.uint8).reshape(48, 64, 3), i, axis=1)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        output.mux(stream.encode(None))
    return path


def bench(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([BIN / "foley-bench", *map(str, arguments)], capture_output=True, text=True, timeout=500)


def invoke(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command like `bench`, but in this process."""
    result = CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False)
    return subprocess.CompletedProcess(arguments, result.exit_code, result.stdout, result.stderr)


def measured(
    command: str, bundle: Path, folder: Path, *options: object, run: Callable[..., Any] = bench
) -> tuple[dict[str, Any], str]:
    """Run a command, check its HTML report, and return its JSON document and its standard output."""
    file, page = folder / f"{command}.json", folder / f"{command}.html"
    done = run(command, "--bundle", bundle, "--json", file, "--report", page, *options)
    assert done.returncode == 0, done.stderr
    document = json.loads(file.read_text())
    assert document["bundle"] == {"name": "tiny", "digest": read(bundle).digest}
    assert document["machine"]["cores"] >= 1
    assert document["versions"]["torch"]
    assert "://" not in page.read_text()
    assert not re.search('src="(?!data:)', page.read_text())
    assert document["bundle"]["digest"][:12] in page.read_text()
    return document, done.stdout


@pytest.mark.long
def test_stages_reports_every_network(tiny_bundle: Path, tmp_path: Path) -> None:
    document, printed = measured("stages", tiny_bundle, tmp_path, "--rounds", 1)
    assert document["settings"]["threads"] >= 1
    assert document["server"]["start_s"] > 0
    assert 0 < document["server"]["memory_loaded_bytes"] < document["machine"]["memory_bytes"]
    assert 0 < document["server"]["memory_called_bytes"] < document["machine"]["memory_bytes"]
    assert set(document["networks"]) == set(networks(read(tiny_bundle).manifest))
    for name, figures in document["networks"].items():
        assert name in printed
        assert {figures[backend]["rounds"] for backend in ("baseline", "onnxruntime", "triton")} == {1}
        assert figures["flop"] > 0


def test_latency_accounts_for_all_time(
    tiny_bundle: Path, triton: TritonClient, short_video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs in this process, on the shared server."""
    monkeypatch.setattr(latency, "embedded_triton", lambda _: nullcontext(triton))
    document, printed = measured("latency", tiny_bundle, tmp_path, "--runs", 1, "--video", short_video, run=invoke)
    steps = document["settings"]["steps"]
    for loop in ("client", "server"):
        assert loop in printed
        found, overhead = document["latency"][loop], document["overhead"][loop]
        assert 0 < found["min_s"] <= found["median_s"] <= found["max_s"]
        assert all(0 < seconds < found["max_s"] for seconds in found["stages_s"].values())
        # by Triton's statistics, networks compute within the calls, and calls last within the clip
        assert all(seconds > 0 for seconds in overhead["networks_s"].values())
        assert 0 < overhead["overhead_ms_per_step"] * steps / 1e3 < overhead["overhead_s"]
    step = document["step"]
    parts = [step[f"{part}_ms"] for part in ("network", "queue", "copies", "grpc", "client")]
    assert all(part > 0 for part in parts if part != step["grpc_ms"])
    assert step["grpc_ms"] > -0.1 * step["wall_ms"]  # a difference: on one core the rest of a call overlaps the network
    assert step["wall_ms"] == pytest.approx(sum(parts))


@pytest.mark.long
def test_throughput_counts_every_step(tiny_bundle: Path, tmp_path: Path) -> None:
    document, _ = measured("throughput", tiny_bundle, tmp_path, "--clips", 2)
    closed, opened = document["closed"], document["open"]
    assert list(closed) == [str(callers) for callers in CALLERS]
    assert list(opened) == [str(share) for share in SHARES]
    for name, row in [*closed.items(), *opened.items()]:
        assert row["clips"] == (max(2, int(name)) if name in closed else 2)
        assert 0 < row["p50_s"] <= row["p95_s"] <= row["max_s"]
        assert 1 <= row["max_in_flight"] <= row["clips"]
        denoiser = row["denoiser"]
        batches = {int(size): count for size, count in denoiser["batches"].items()}
        assert sum(batches.values()) == denoiser["executions"]
        assert sum(size * count for size, count in batches.items()) == denoiser["rows"]
        assert denoiser["rows"] == row["clips"] * document["settings"]["steps"]
        assert max(batches) <= (int(name) if name in closed else row["clips"])
        assert denoiser["queue_ms"] > 0
    assert all(row["max_in_flight"] == int(callers) for callers, row in closed.items())
    rates = [row["arrivals_per_minute"] for row in opened.values()]
    assert all(slower < faster for slower, faster in pairwise(rates))


@pytest.mark.parametrize("command", ["stages", "latency", "throughput"])
def test_rejects_invalid_output_before_measuring(tmp_path: Path, command: str) -> None:
    files = ["--json", tmp_path / "a.json", "--report", tmp_path / "a.md"]
    with pytest.raises(OutputError, match=r"a\.md"):
        invoke(command, "--bundle", tmp_path / "none", *files)
