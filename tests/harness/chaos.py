"""Fault-injection test of the render farm: runs `foley render` until all rows are done, and kills its processes.

At the end, every result exists, is complete and is byte-identical to that of an undisturbed run, no row was rendered
twice, and no other file or process is left.
"""

import filecmp
import json
import os
import random
import secrets
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from foley_bench.small_video import write_manifest
from foley_client.render.storage import LOCK, SIDECAR

KINDS = ("driver", "worker", "Triton")
END_TIMEOUT_S = 60.0


@dataclass
class Outcome:
    """Result of a run of the harness.

    Attributes:
        runs: Number of `foley render` runs, the undisturbed one included.
        kills: Number of kills by kind of process.
        faults: One sentence for each violated guarantee.
        seconds: Duration of the disturbed runs, until every row was done.
        undisturbed_s: Duration of the undisturbed run in seconds.
    """

    runs: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0
    undisturbed_s: float = 0.0


def chaos(
    bundle: Path, folder: Path, rows: int, kills: int, seed: int, ray: bool, report: Callable[[str], None]
) -> Outcome:
    """Render a manifest in as many runs as it takes while processes are killed, then once without kills.

    Args:
        bundle: Folder of a small bundle.
        folder: An empty folder.
        rows: Number of rows.
        kills: Number of processes to kill.
        seed: Seed of the times at which processes are killed.
        ray: Whether to render on a Ray cluster on this machine, where workers are separate processes.
        report: Called with progress messages.
    """
    rng, outcome = random.Random(seed), Outcome()
    manifest = write_manifest(folder, rows)
    names = [json.loads(line)["output"] for line in manifest.read_text().splitlines()]
    runs = _Runs(bundle, folder, manifest, rows, ray)
    done: Counter[str] = Counter()
    plan = [KINDS[i % len(KINDS)] for i in range(kills)]
    began = time.monotonic()
    while True:
        outcome.runs += 1
        code = _run(runs, folder / "results", plan, rng, done, outcome, report)
        if code is not None and (code == 0 or not plan):
            break
    outcome.seconds = time.monotonic() - began
    if code != 0:
        outcome.faults.append(f"the last run ended with exit code {code}")
    outcome.faults += [f"{name} was rendered {count} times" for name, count in done.items() if count > 1]

    report("the same rows without kills")
    began = time.monotonic()
    _run(runs, folder / "peaceful", [], rng, Counter(), outcome, report)
    outcome.undisturbed_s = time.monotonic() - began
    outcome.faults += compare(folder / "results", folder / "peaceful", names)
    outcome.faults += runs.left()
    return outcome


def compare(results: Path, undisturbed: Path, names: list[str]) -> list[str]:
    """Return one sentence for each difference of `results` from the undisturbed run."""
    faults = []
    pages = {f"report-{i + 2}.html" for i in range(len(names) // 100)} | {"report.html"}
    expected = {*names, *(name + SIDECAR for name in names), *pages, LOCK}
    found = {path.relative_to(results).as_posix() for path in results.rglob("*") if path.is_file()}
    faults += [f"{name} is missing" for name in sorted(expected - found - pages)]
    faults += [f"{name} is left over" for name in sorted(found - expected)]
    for name in sorted(found & set(names)):
        if not filecmp.cmp(results / name, undisturbed / name, shallow=False):
            faults.append(f"{name} differs from that of the undisturbed run")
        with suppress(FileNotFoundError):
            about = json.loads((results / (name + SIDECAR)).read_text())
            if about["bytes"] != (results / name).stat().st_size:
                faults.append(f"{name} has another size than its sidecar states")
    return faults


class _Runs:
    """Starts `foley render` with a marker in the environment, which identifies its processes."""

    def __init__(self, bundle: Path, folder: Path, manifest: Path, rows: int, ray: bool) -> None:
        self._rows = rows
        self._mark = secrets.token_hex(8)
        self._temporary = folder / "tmp"
        self._temporary.mkdir()
        foley = Path(sys.executable).with_name("foley")
        self._command = [foley, "render", manifest, "--bundle", bundle.absolute(), "--json", "--no-cache"]
        self._command += ["--ray", "local"] if ray else []
        self._environment = {
            **os.environ,
            "FOLEY_CHAOS": self._mark,
            "TMPDIR": str(self._temporary),
            "RAY_TMPDIR": "/tmp/ray",  # paths of Unix sockets have a length limit
        }

    def most_between(self, done: Counter[str], plan: list[str]) -> int:
        """Return the maximum number of rows until the next kill, which spreads `plan` over the remaining rows."""
        return max(1, 5 * (self._rows - len(done)) // (4 * len(plan) + 4))

    def start(self, results: Path, log: Any) -> "subprocess.Popen[str]":
        """Start a run that writes JSON lines to its standard output."""
        command = [str(word) for word in [*self._command, "-o", results]]
        return subprocess.Popen(command, env=self._environment, stdout=subprocess.PIPE, stderr=log, text=True)

    def processes(self) -> list[psutil.Process]:
        """Return the live processes started by the runs."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                marked = process.environ().get("FOLEY_CHAOS") == self._mark
                if marked and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def find(self, kind: str) -> list[psutil.Process]:
        """Return the live processes of a kind; without Ray workers, "worker" is Triton's Python model processes."""
        found = []
        for process in self.processes():
            with suppress(psutil.Error):
                command = " ".join(process.cmdline()) or process.name()
                if kind == "Triton" and "bin/tritonserver" in command:
                    found.append(process)
                if kind == "worker" and ("ray::Worker" in command or "triton_python_backend_stub" in command):
                    found.append(process)
        workers = [process for process in found if "ray::" in " ".join(process.cmdline())]
        return workers or found

    def left(self) -> list[str]:
        """Wait for the processes for up to `END_TIMEOUT_S`, and return one sentence for each process and file left."""
        until = time.monotonic() + END_TIMEOUT_S
        while (processes := self.processes()) and time.monotonic() < until:
            time.sleep(0.2)
        faults = [f"process {process.pid} is left: {process.name()}" for process in processes]
        return faults + [f"{path.name} is left" for path in self._temporary.iterdir()]


def _run(
    runs: _Runs,
    results: Path,
    plan: list[str],
    rng: random.Random,
    done: Counter[str],
    outcome: Outcome,
    report: Callable[[str], None],
) -> int | None:
    """Run `foley render` once, and kill processes, which are removed from `plan`.

    Returns:
        The exit code, or None if the driver was killed.
    """
    with (results.parent / "log").open("a") as log:
        process = runs.start(results, log)
        assert process.stdout is not None
        next_kill, killed = len(done) + rng.randint(1, runs.most_between(done, plan)), False
        for line in process.stdout:
            if not line.startswith("{"):
                continue
            event = json.loads(line)
            if event["event"] == "failed":
                outcome.faults.append(f"{event['output']} failed: {event['reason']}")
            if event["event"] != "done":
                continue
            done[event["output"]] += 1
            if plan and len(done) >= next_kill and not killed:
                time.sleep(rng.random())  # kill at an arbitrary point of the next rows
                victims = [process] if plan[0] == "driver" else runs.find(plan[0])
                if not victims:  # it is restarting
                    continue
                kind = plan.pop(0)
                with suppress(psutil.Error):
                    rng.choice(victims).kill()
                    outcome.kills[kind] += 1
                    report(f"{kind} killed, {event['done'] + event['skipped']} of {event['total']} there")
                killed = kind == "driver"
                next_kill = len(done) + rng.randint(1, runs.most_between(done, plan))
        code = process.wait()
        process.stdout.close()
    return None if killed else code
