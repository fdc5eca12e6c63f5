"""The ONNX Runtime session of a graph."""

import os
import subprocess
import sys
from pathlib import Path

from foley.bundle import graph_file

THREADS = """
import os, sys
os.sched_setaffinity(0, {int(sys.argv[2])})
from pathlib import Path
from foley_server.backend.session import open_session

session = open_session(Path(sys.argv[1]))
print({core for thread in os.listdir("/proc/self/task") for core in os.sched_getaffinity(int(thread))})
"""


def test_session_uses_only_the_cores_of_its_process(tiny_bundle: Path) -> None:
    """The cores of a container or a cgroup: threads on other cores would slow down its neighbours."""
    for core in sorted(os.sched_getaffinity(0))[-2:]:
        graph = tiny_bundle / graph_file("vocoder")
        command = [sys.executable, "-c", THREADS, str(graph), str(core)]
        answer = subprocess.run(command, capture_output=True, text=True, check=True)
        assert answer.stdout.strip() == str({core})
