"""Where the time of a clip goes: networks, serving and the client.

A client overlaps its calls with each other and with the decoding of the video, which hides what serving adds. The time
is therefore split on clips whose calls are made one after another (`SerialTriton`). There

    time of the clip = networks + serving + client

Networks: computing, as Triton counts it around every execution. RGB features are computed beside the optical flow and
its features, so the longer of the two counts; the overhead is never understated. Serving: the rest of the calls, which
is gRPC, copies, queues and ensembles. Client: time outside calls. Overhead is serving and client together.
"""

import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy.typing as npt

from foley_bench.work import Work
from foley_client import Triton
from foley_pipeline.triton import Arrays

FEATURES, DENOISING, DECODING = "optical flow and features", "denoising", "VAE and vocoder"
NETWORKS: Mapping[str, tuple[str, ...]] = {
    FEATURES: ("optical_flow", "rgb_features", "flow_features"),
    "Video2RMS": ("video2rms",),
    "prompt": ("clap_text", "clap_audio"),
    DENOISING: ("denoiser",),
    DECODING: ("vae_decoder", "vocoder"),
}
"""The stages of the client, and the prefixes of the models that compute for each of them."""


class SerialTriton(Triton):
    """A server called by one thread at a time; sums the duration of the calls of each model."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.calls_s: defaultdict[str, float] = defaultdict(float)
        self._lock = threading.Lock()

    def infer(self, stage: str, outputs: Sequence[str] | None = None, /, **inputs: npt.ArrayLike) -> Arrays:
        """As `Triton.infer`."""
        with self._call(stage):
            return super().infer(stage, outputs, **inputs)

    def stream(self, stage: str, **inputs: npt.ArrayLike) -> Iterator[Arrays]:
        """As `Triton.stream`; time that the caller spends between two responses counts."""
        with self._call(stage):
            yield from super().stream(stage, **inputs)

    @contextmanager
    def _call(self, stage: str) -> Iterator[None]:
        with self._lock:
            started = time.perf_counter()
            yield
            self.calls_s[stage] += time.perf_counter() - started


@dataclass(frozen=True)
class Clip:
    """The duration of a clip and of the client's stages, some of which overlap, in seconds."""

    wall_s: float
    stages_s: Mapping[str, float]


@dataclass(frozen=True)
class Account:
    """The time of a clip whose calls were made one after another, in seconds.

    Attributes:
        calls_s: duration of the calls by the model that was called.
        work: counters by the model that computed.
    """

    clip: Clip
    calls_s: Mapping[str, float]
    work: Mapping[str, Work]

    @property
    def networks_s(self) -> Mapping[str, float]:
        """Computing by stage."""
        return {stage: computed_s(stage, self.work) for stage in NETWORKS}

    @property
    def overhead_s(self) -> float:
        """Everything that is not a network."""
        return self.clip.wall_s - sum(self.networks_s.values())

    @property
    def serving_s(self) -> float:
        """The part of the overhead inside calls."""
        return sum(self.calls_s.values()) - sum(self.networks_s.values())

    @property
    def loop_overhead_s(self) -> float:
        """The overhead of the diffusion loop; with the loop on the server, that of decoding too."""
        inside = [DENOISING] if "latents_to_waveform" in self.calls_s else [DENOISING, DECODING]
        return self.clip.stages_s[DENOISING] - sum(self.networks_s[stage] for stage in inside)

    def step_parts_s(self) -> dict[str, float]:
        """Seconds of all denoising steps with the loop in the client, by part; they add up to "wall"."""
        denoisers = [work for name, work in self.work.items() if name.startswith(NETWORKS[DENOISING])]
        wall = self.clip.stages_s[DENOISING]
        calls = sum(s for model, s in self.calls_s.items() if model.startswith(NETWORKS[DENOISING]))
        network = self.networks_s[DENOISING]
        queue, copies = sum(work.queue_s for work in denoisers), sum(work.copy_s for work in denoisers)
        return {
            "wall": wall,
            "network": network,
            "queue": queue,
            "copies": copies,
            "grpc": calls - network - queue - copies,
            "client": wall - calls,
        }


def computed_s(stage: str, work: Mapping[str, Work]) -> float:
    """Seconds of computing for `stage`, where no two calls are made at a time."""
    models = {name: one.compute_s for name, one in work.items() if name.startswith(NETWORKS[stage])}
    if stage != FEATURES:
        return sum(models.values())
    rgb = models.pop("rgb_features")
    return max(rgb, sum(models.values()))  # beside each other
