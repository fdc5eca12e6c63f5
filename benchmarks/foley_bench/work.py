"""Counters of the served models, from Triton's statistics."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from foley.manifest import Manifest
from foley.stages import stages
from foley_client import Triton


@dataclass(frozen=True)
class Work:
    """Counters of one served model, or their growth.

    Attributes:
        requests: number of calls answered.
        queue_s: seconds that they waited in the queue, summed.
        batches: number of executions by batch size.
        copy_s: seconds that Triton copied tensors of executions in and out.
        compute_s: seconds of executions; of a network, ONNX Runtime and the Python code around it.
    """

    requests: int
    queue_s: float
    batches: Mapping[int, int]
    copy_s: float
    compute_s: float

    def __sub__(self, before: "Work") -> "Work":
        return Work(
            self.requests - before.requests,
            self.queue_s - before.queue_s,
            Counter(self.batches) - Counter(before.batches),
            self.copy_s - before.copy_s,
            self.compute_s - before.compute_s,
        )

    @property
    def executions(self) -> int:
        """Number of executions of any batch size."""
        return sum(self.batches.values())

    @property
    def rows(self) -> int:
        """Rows of all batches."""
        return sum(size * count for size, count in self.batches.items())


def computing(manifest: Manifest) -> list[str]:
    """The served models that compute: networks, and DIS where it stands in for the optical flow network."""
    return [
        name
        for name, stage in stages(manifest).items()
        if stage.kind == "network" or (stage.kind == "python" and name.startswith("optical_flow"))
    ]


def read(triton: Triton) -> Mapping[str, Work]:
    """The counters of every computing model since the server started."""
    return {model: _work(triton.statistics(model)) for model in computing(triton.manifest)}


def _work(statistics: Mapping[str, Any]) -> Work:
    """From the document that Triton gives; it leaves zeros out, and counts a batch once for each of its requests."""
    of_requests, of_batches = statistics["inference_stats"], statistics.get("batch_stats", [])
    return Work(
        requests=int(of_requests["success"].get("count", 0)),
        queue_s=_seconds(of_requests["queue"]),
        batches={int(batch["batch_size"]): int(batch["compute_infer"]["count"]) for batch in of_batches},
        copy_s=sum(_seconds(batch[part]) for batch in of_batches for part in ("compute_input", "compute_output")),
        compute_s=sum(_seconds(batch["compute_infer"]) for batch in of_batches),
    )


def _seconds(duration: Mapping[str, str]) -> float:
    return int(duration.get("ns", 0)) / 1e9
