"""A night of the render farm in which processes are killed: `foley render` again and again until all is done.

What must hold at the end: every result is there, whole, and the same to the last bit as one that is made in peace;
none was rendered twice; nothing else is left, in the folder or on the machine.
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

from foley_bench.small_video import write_small_video
from foley_client.render.place import LOCK
from foley_client.render.task import SIDECAR

VIDEOS = 6
KINDS = ("driver", "worker", "Triton")
END_TIMEOUT_S = 60.0


@dataclass
class Outcome:
    """What the night has seen.

    Attributes:
        runs: of `foley render`, the last one in peace.
        kills: what was killed -> how often.
        faults: what must not be, in words.
        seconds: until all was done; peaceful_s: of the run without kills.
    """

    runs: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0
    peaceful_s: float = 0.0


def write_manifest(folder: Path, rows: int) -> Path:
    """A manifest of `rows` small rows, which share a few videos."""
    for i in range(VIDEOS):
        write_small_video(folder / f"{i}.mp4", speed=i + 1)
    manifest = folder / "rows.jsonl"
    with manifest.open("w") as file:
        for i in range(rows):
            row: dict[str, Any] = {"video": f"{i % VIDEOS}.mp4", "output": f"{i % 7}/{i}.{'mp4' if i % 4 else 'wav'}"}
            row |= {"text": f"thing {i % 11}", "seed": i, "steps": 1 + i % 4, "loudness": ("level", "follow")[i % 2]}
            file.write(json.dumps(row) + "\n")
    return manifest


def chaos(
    bundle: Path, folder: Path, rows: int, kills: int, seed: int, ray: bool, say: Callable[[str], None]
) -> Outcome:
    """Render `rows` rows while `kills` processes are killed, run after run.

    Args:
        folder: an empty one.
        ray: on a Ray cluster of this machine, where the worker is a process of its own.
        say: told what happens.
    """
    dice, outcome = random.Random(seed), Outcome()
    manifest = write_manifest(folder, rows)
    names = [json.loads(line)["output"] for line in manifest.read_text().splitlines()]
    night = _Night(bundle, folder, manifest, rows, ray)
    done: Counter[str] = Counter()
    plan = [KINDS[i % len(KINDS)] for i in range(kills)]
    began = time.monotonic()
    while True:
        outcome.runs += 1
        code = _run(night, folder / "results", plan, dice, done, outcome, say)
        if code is not None and (code == 0 or not plan):
            break
    outcome.seconds = time.monotonic() - began
    if code != 0:
        outcome.faults.append(f"the last run ended with exit code {code}")
    outcome.faults += [f"{name} was rendered {count} times" for name, count in done.items() if count > 1]

    say("once more, in peace")
    began = time.monotonic()
    _run(night, folder / "peaceful", [], dice, Counter(), outcome, say)
    outcome.peaceful_s = time.monotonic() - began
    outcome.faults += compare(folder / "results", folder / "peaceful", names)
    outcome.faults += night.left()
    return outcome


def compare(results: Path, peaceful: Path, names: list[str]) -> list[str]:
    """What is wrong with `results`, in words."""
    faults = []
    pages = {f"report-{i + 2}.html" for i in range(len(names) // 100)} | {"report.html"}
    expected = {*names, *(name + SIDECAR for name in names), *pages, LOCK}
    found = {path.relative_to(results).as_posix() for path in results.rglob("*") if path.is_file()}
    faults += [f"{name} is missing" for name in sorted(expected - found - pages)]
    faults += [f"{name} is left over" for name in sorted(found - expected)]
    for name in sorted(found & set(names)):
        if not filecmp.cmp(results / name, peaceful / name, shallow=False):
            faults.append(f"{name} is not what it is in peace")
        with suppress(FileNotFoundError):
            about = json.loads((results / (name + SIDECAR)).read_text())
            if about["bytes"] != (results / name).stat().st_size:
                faults.append(f"{name} is not as long as its sidecar says")
    return faults


class _Night:
    """How `foley render` is called, in an environment by which its processes are known."""

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
            "RAY_TMPDIR": "/tmp/ray",  # the names of its sockets must be short
        }

    def most_between(self, done: Counter[str], plan: list[str]) -> int:
        """The most rows until the next kill, so that those in `plan` come all along what is left."""
        return max(1, 5 * (self._rows - len(done)) // (4 * len(plan) + 4))

    def start(self, results: Path, log: Any) -> "subprocess.Popen[str]":
        """A run whose standard output is JSON lines."""
        command = [str(word) for word in [*self._command, "-o", results]]
        return subprocess.Popen(command, env=self._environment, stdout=subprocess.PIPE, stderr=log, text=True)

    def processes(self) -> list[psutil.Process]:
        """All that this night's runs have started, and that still are."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                marked = process.environ().get("FOLEY_CHAOS") == self._mark
                if marked and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def find(self, kind: str) -> list[psutil.Process]:
        """The processes of a kind: Ray's workers, or the models' where there are none; Triton itself."""
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
        """What is there that should not be, some time after the last run."""
        until = time.monotonic() + END_TIMEOUT_S
        while (processes := self.processes()) and time.monotonic() < until:
            time.sleep(0.2)
        faults = [f"process {process.pid} is left: {process.name()}" for process in processes]
        return faults + [f"{path.name} is left" for path in self._temporary.iterdir()]


def _run(
    night: _Night,
    results: Path,
    plan: list[str],
    dice: random.Random,
    done: Counter[str],
    outcome: Outcome,
    say: Callable[[str], None],
) -> int | None:
    """One run; its exit code, None where its driver was killed. What is killed is taken from `plan`."""
    with (results.parent / "log").open("a") as log:
        process = night.start(results, log)
        assert process.stdout is not None
        next_kill, killed = len(done) + dice.randint(1, night.most_between(done, plan)), False
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
                time.sleep(dice.random())  # in the middle of anything
                victims = [process] if plan[0] == "driver" else night.find(plan[0])
                if not victims:  # it is being started again
                    continue
                kind = plan.pop(0)
                with suppress(psutil.Error):
                    dice.choice(victims).kill()
                    outcome.kills[kind] += 1
                    say(f"{kind} killed, {event['done'] + event['skipped']} of {event['total']} there")
                killed = kind == "driver"
                next_kill = len(done) + dice.randint(1, night.most_between(done, plan))
        code = process.wait()
        process.stdout.close()
    return None if killed else code
