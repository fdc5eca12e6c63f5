"""Splits the time of a clip into networks and overhead.

A client overlaps its calls with each other and with the decoding of the video, which hides the overhead. It is
therefore measured on clips whose calls are made one after another (`SerialTriton`).

Networks: compute time, as Triton counts it around every execution. RGB features are computed in parallel with the
optical flow and its features, so the longer of the two counts; the overhead is never understated. Overhead: everything
else, that is gRPC, copies, queues, ensembles, and the time outside calls.
"""

import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy.typing as npt

from foley_bench.counters import Counters
from foley_pipeline.progress import Stage
from foley_pipeline.triton import Arrays, TritonClient

NETWORKS: Mapping[str, tuple[str, ...]] = {
    Stage.FEATURES: ("optical_flow", "rgb_features", "flow_features"),
    Stage.VIDEO2RMS: ("video2rms",),
    Stage.PROMPT: ("clap_text", "clap_audio"),
    Stage.DENOISE: ("denoiser",),
    Stage.DECODE: ("vae_decoder", "vocoder"),
}
"""Stages of the client -> prefixes of the models that compute them."""


class SerialTriton(TritonClient):
    """A client that makes one call at a time and sums the duration of the calls of each model."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.calls_s: defaultdict[str, float] = defaultdict(float)
        self._lock = threading.Lock()

    def infer(self, stage: str, outputs: Sequence[str] | None = None, /, **inputs: npt.ArrayLike) -> Arrays:
        """Call a model; see `TritonClient.infer`."""
        with self._call(stage):
            return super().infer(stage, outputs, **inputs)

    def stream(self, stage: str, **inputs: npt.ArrayLike) -> Iterator[Arrays]:
        """Call a decoupled model; see `TritonClient.stream`. The caller's time between two responses counts."""
        with self._call(stage):
            yield from super().stream(stage, **inputs)

    @contextmanager
    def _call(self, stage: str) -> Iterator[None]:
        with self._lock:
            started = time.perf_counter()
            yield
            self.calls_s[stage] += time.perf_counter() - started


@dataclass(frozen=True)
class ClipTiming:
    """The duration of a clip and of the client's stages, which may overlap, in seconds."""

    wall_s: float
    stages_s: Mapping[str, float]


@dataclass(frozen=True)
class TimeBreakdown:
    """The time of a clip with sequential calls, in seconds.

    Attributes:
        calls_s: Duration of the calls by the model that was called.
        counters: Counters by the model that computed.
    """

    clip: ClipTiming
    calls_s: Mapping[str, float]
    counters: Mapping[str, Counters]

    @property
    def networks_s(self) -> Mapping[str, float]:
        """Compute time by stage."""
        return {stage: compute_s_of(stage, self.counters) for stage in NETWORKS}

    @property
    def overhead_s(self) -> float:
        """Time outside the networks."""
        return self.clip.wall_s - sum(self.networks_s.values())

    @property
    def loop_overhead_s(self) -> float:
        """The overhead of the diffusion loop; with the server loop, including that of decoding."""
        inside = [Stage.DENOISE] if "latents_to_waveform" in self.calls_s else [Stage.DENOISE, Stage.DECODE]
        return self.clip.stages_s[Stage.DENOISE] - sum(self.networks_s[stage] for stage in inside)

    def step_parts_s(self) -> dict[str, float]:
        """Return the seconds of all denoising steps of the client loop, by part; the parts add up to "wall"."""
        denoisers = [counters for name, counters in self.counters.items() if name.startswith(NETWORKS[Stage.DENOISE])]
        wall = self.clip.stages_s[Stage.DENOISE]
        calls = sum(s for model, s in self.calls_s.items() if model.startswith(NETWORKS[Stage.DENOISE]))
        network = self.networks_s[Stage.DENOISE]
        queue, copies = sum(counters.queue_s for counters in denoisers), sum(counters.copy_s for counters in denoisers)
        return {
            "wall": wall,
            "network": network,
            "queue": queue,
            "copies": copies,
            "grpc": calls - network - queue - copies,
            "client": wall - calls,
        }


def compute_s_of(stage: str, counters: Mapping[str, Counters]) -> float:
    """Return the compute time of `stage` in seconds, for sequential calls."""
    models = {name: one.compute_s for name, one in counters.items() if name.startswith(NETWORKS[stage])}
    if stage != Stage.FEATURES:
        return sum(models.values())
    rgb = models.pop("rgb_features")
    return max(rgb, sum(models.values()))  # in parallel
