"""What a clip spends its time on: networks, serving and the client.

A client overlaps its calls: beside each other, and beside the decoding of the video. Under that nobody can tell what
was added to the networks' time, so it is measured on clips whose calls go one after another (`OneAtATime`). There

    time of the clip = networks + serving + client

Networks: the models' computing, as Triton counts it around every execution: ONNX Runtime, and the few lines of Python
that hand it arrays (`foley-bench stages` compares with ONNX Runtime alone). RGB features are found beside flow and its
features in one call, so of these two the longer counts: overhead is never understated. Serving: what calls last beyond
that: gRPC, copies, waiting in queues, ensembles. Client: what happens outside of calls, decoding where nothing hides it
included. The overhead is serving and client together, everything that is not a network.
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
"""A stage of the client, and how the names of the models begin that compute for it."""


class OneAtATime(Triton):
    """A server that is called by one thread at a time; adds up how long calls of each model take."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.calls_s: defaultdict[str, float] = defaultdict(float)
        self._turn = threading.Lock()

    def infer(self, stage: str, outputs: Sequence[str] | None = None, /, **inputs: npt.ArrayLike) -> Arrays:
        """As `Triton.infer`."""
        with self._call(stage):
            return super().infer(stage, outputs, **inputs)

    def stream(self, stage: str, **inputs: npt.ArrayLike) -> Iterator[Arrays]:
        """As `Triton.stream`; what the caller does between two responses counts."""
        with self._call(stage):
            yield from super().stream(stage, **inputs)

    @contextmanager
    def _call(self, stage: str) -> Iterator[None]:
        with self._turn:
            started = time.perf_counter()
            yield
            self.calls_s[stage] += time.perf_counter() - started


@dataclass(frozen=True)
class Clip:
    """One clip, in seconds."""

    wall_s: float
    stages_s: Mapping[str, float]  # of the client, as its `Watch` timed them; some last beside each other


@dataclass(frozen=True)
class Account:
    """What a clip, its calls one after another, spent its time on, in seconds."""

    clip: Clip
    calls_s: Mapping[str, float]  # by the model that was called
    work: Mapping[str, Work]  # by the model that did it

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
        """The part of the overhead that calls last."""
        return sum(self.calls_s.values()) - sum(self.networks_s.values())

    @property
    def denoising(self) -> Sequence[Work]:
        """What the denoisers did."""
        return [work for name, work in self.work.items() if name.startswith(NETWORKS[DENOISING])]

    @property
    def loop_overhead_s(self) -> float:
        """The part of the overhead that the diffusion loop is; with the loop on the server also that of decoding."""
        inside = [DENOISING] if "latents_to_waveform" in self.calls_s else [DENOISING, DECODING]
        return self.clip.stages_s[DENOISING] - sum(self.networks_s[stage] for stage in inside)


def computed_s(stage: str, work: Mapping[str, Work]) -> float:
    """How long a network of `stage` was computing, no two calls at a time, in seconds."""
    models = {name: one.compute_s for name, one in work.items() if name.startswith(NETWORKS[stage])}
    if stage != FEATURES:
        return sum(models.values())
    rgb = models.pop("rgb_features")
    return max(rgb, sum(models.values()))  # beside each other
