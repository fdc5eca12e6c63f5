"""Progress of a call, reported to a callback, and the time that its stages take."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum

from foley.envelope import Floats


class Stage(str, Enum):
    """The stages of a generation, and of the calls around it. Stages can overlap."""

    CONNECT = "connect"
    START_SERVER = "start_server"
    UPLOAD = "upload"
    QUEUE = "queue"
    FEATURES = "features"
    VIDEO2RMS = "video2rms"
    ENVELOPE_CACHED = "envelope_cached"
    PROMPT = "prompt"
    PROMPT_CACHED = "prompt_cached"
    DENOISE = "denoise"
    DECODE = "decode"
    WRITE = "write"

    def __str__(self) -> str:
        return self.value


_LABELS: Mapping[str, str] = {
    Stage.CONNECT: "connecting",
    Stage.START_SERVER: "starting the server",
    Stage.UPLOAD: "uploading",
    Stage.QUEUE: "waiting in the queue",
    Stage.FEATURES: "optical flow and features",
    Stage.VIDEO2RMS: "Video2RMS",
    Stage.ENVELOPE_CACHED: "envelope, from the cache",
    Stage.PROMPT: "prompt",
    Stage.PROMPT_CACHED: "prompt, from the cache",
    Stage.DENOISE: "denoising",
    Stage.DECODE: "VAE and vocoder",
    Stage.WRITE: "writing",
}


def label(stage: str) -> str:
    """Return the name of a stage for people."""
    return _LABELS.get(stage, stage)


@dataclass(frozen=True)
class Progress:
    """Progress of one stage.

    Attributes:
        stage: A `Stage`; other programs than the pipeline, such as benchmarks, name their own.
        done: Completed units: bytes of an upload, frames of FEATURES, windows of VIDEO2RMS and DECODE, denoising steps.
        total: Number of units; None: unknown. For QUEUE, `done` is 0 and `total` the number of requests ahead.
        seconds: Duration of the stage in the event that ends it, successfully or not; None before.
        envelope: The envelope, linear RMS at 100 Hz, in the event that makes it known; None in all others.
    """

    stage: str
    done: int = 0
    total: int | None = None
    seconds: float | None = None
    envelope: Floats | None = field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        if self.seconds is not None:
            return f"{self.stage}: {self.seconds:.2f} s"
        return f"{self.stage}: {self.done}" + (f"/{self.total}" if self.total is not None else "")


OnProgress = Callable[[Progress], object]
"""Receives the progress of a call. Called from several threads, one at a time; an exception in it ends the call."""


def ignore_progress(_: Progress) -> None:
    """Discard the progress; the default of every `OnProgress`."""


class StageTimer:
    """Times the stages of a call and reports their progress. Thread-safe.

    Args:
        on_progress: Receives the progress.

    Attributes:
        timings_s: Seconds per stage, in the order in which the stages ended.
        elapsed_s: Seconds from the creation to the end of the last stage; less than the sum of `timings_s` if stages
            overlap.
    """

    def __init__(self, on_progress: OnProgress = ignore_progress) -> None:
        self.timings_s: dict[str, float] = {}
        self.elapsed_s = 0.0
        self._on_progress = on_progress
        self._started = time.perf_counter()
        self._lock = threading.RLock()

    def report(self, progress: Progress) -> None:
        """Pass an event to the callback."""
        with self._lock:
            self._on_progress(progress)

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator["StageProgress"]:
        """Time the block as a stage.

        Args:
            name: Name of the stage.
            total: Number of equal units of work; None: unknown.

        Yields:
            The stage, to report completed units.
        """
        stage = StageProgress(self, name, total)
        self.report(Progress(name, 0, total))
        started = time.perf_counter()
        try:
            yield stage
        finally:
            seconds = time.perf_counter() - started
            with self._lock:
                self.timings_s[str(name)] = self.timings_s.get(str(name), 0.0) + seconds
                self.elapsed_s = time.perf_counter() - self._started
            self.report(Progress(name, stage.done, total, seconds))


class StageProgress:
    """Progress of one running stage of a `StageTimer`.

    Attributes:
        done: Number of completed units.
    """

    def __init__(self, timer: StageTimer, name: str, total: int | None) -> None:
        self._timer, self._name, self._total = timer, name, total
        self.done = 0

    def advance(self, units: int = 1) -> None:
        """Report that `units` more units are complete."""
        with self._timer._lock:
            self.done += units
            self._timer.report(Progress(self._name, self.done, self._total))
