"""Ray's multi-node test cluster on this machine, in a separate process: `python -m foley_bench.ray_nodes 0 1`.

A head that renders nothing, and a node for each given core. Ray forks when it starts nodes, which is unsafe in a
process with threads of other libraries.
"""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

STOP_TIMEOUT_S = 60.0


@contextmanager
def ray_cluster(cores: Sequence[int]) -> Iterator[str]:
    """Yield the address of a cluster with a one-core node for each of `cores`; stop it on exit."""
    command = [sys.executable, "-m", "foley_bench.ray_nodes", *map(str, cores)]
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}  # disables its usage reports
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as process:
        assert process.stdin
        assert process.stdout
        try:
            for line in process.stdout:
                if line.startswith("address "):
                    yield line.split()[1]
                    break
            else:
                raise RuntimeError("Ray's test cluster did not start; see /tmp/ray/session_latest/logs")
        finally:
            process.stdin.close()
            process.wait(STOP_TIMEOUT_S)


def _serve(cores: Sequence[int]) -> None:
    from ray.cluster_utils import Cluster

    whole = os.sched_getaffinity(0)
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        for core in cores:
            os.sched_setaffinity(0, {core})  # pins the processes of a node to its core
            nodes.add_node(num_cpus=1)
        os.sched_setaffinity(0, whole)
        sys.stdout.write(f"address {nodes.address}\n")
        sys.stdout.flush()
        sys.stdin.read()
    finally:
        nodes.shutdown()


if __name__ == "__main__":
    _serve([int(core) for core in sys.argv[1:]])
