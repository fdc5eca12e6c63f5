"""Counters of the served models, from Triton's statistics."""

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from foley.manifest import Manifest
from foley.stages import stages
from foley_pipeline.triton import TritonClient

SETTLING_S = 0.1


@dataclass(frozen=True)
class Counters:
    """Counters of one served model, or their growth.

    Attributes:
        requests: Number of calls answered.
        queue_s: Seconds that they waited in the queue, summed.
        batches: Number of executions by batch size.
        copy_s: Seconds that Triton copied tensors of executions in and out.
        compute_s: Seconds of executions; of a network, ONNX Runtime and the Python code around it.
    """

    requests: int
    queue_s: float
    batches: Mapping[int, int]
    copy_s: float
    compute_s: float

    def __sub__(self, before: "Counters") -> "Counters":
        return Counters(
            self.requests - before.requests,
            self.queue_s - before.queue_s,
            Counter(self.batches) - Counter(before.batches),
            self.copy_s - before.copy_s,
            self.compute_s - before.compute_s,
        )

    @property
    def executions(self) -> int:
        """Number of executions, of any batch size."""
        return sum(self.batches.values())

    @property
    def rows(self) -> int:
        """Total number of rows in all batches."""
        return sum(size * count for size, count in self.batches.items())


def compute_models(manifest: Manifest) -> list[str]:
    """Return the names of the served networks, and of DIS if it replaces the optical flow network."""
    return [
        name
        for name, stage in stages(manifest).items()
        if stage.kind == "network" or (stage.kind == "python" and name.startswith("optical_flow"))
    ]


def read_counters(triton: TritonClient) -> Mapping[str, Counters]:
    """Return the counters of every computing model since the server started.

    Read until two readings agree, because Triton counts an execution only after it has responded.
    """
    models = compute_models(triton.manifest)
    before: Mapping[str, Counters] = {}
    while True:
        found = {model: _counters(triton.statistics(model)) for model in models}
        if found == before:
            return found
        before = found
        time.sleep(SETTLING_S)


def _counters(statistics: Mapping[str, Any]) -> Counters:
    """Parse Triton's statistics, which omit zeros and count a batch once for each of its requests."""
    request_stats, batch_stats = statistics["inference_stats"], statistics.get("batch_stats", [])
    return Counters(
        requests=int(request_stats["success"].get("count", 0)),
        queue_s=_seconds(request_stats["queue"]),
        batches={int(batch["batch_size"]): int(batch["compute_infer"]["count"]) for batch in batch_stats},
        copy_s=sum(_seconds(batch[part]) for batch in batch_stats for part in ("compute_input", "compute_output")),
        compute_s=sum(_seconds(batch["compute_infer"]) for batch in batch_stats),
    )


def _seconds(duration: Mapping[str, str]) -> float:
    return int(duration.get("ns", 0)) / 1e9
