"""Observable progress of a generation."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import numpy as np

from foley.envelope import Floats
from foley_pipeline.api import foley_pb2 as pb
from foley_pipeline.api.messages import chunks, result_to_proto
from foley_pipeline.progress import Progress as StageProgress
from foley_pipeline.result import GenerationResult


class Progress:
    """Progress and outcome of one generation. Not thread-safe: use it from one event loop.

    Any number of consumers may iterate over `events`. Each event reports the current state, so a slow consumer misses
    intermediate steps instead of accumulating a backlog.

    Attributes:
        id: Id of the generation or request.
        position: Position in the queue, 0 when running; None while unknown.
        envelope: Envelope, once known.
        stage: Latest progress of a stage; None before the first.
        result: Result, if it succeeded.
        error: Error, if it failed.
        expires_s: Unix time at which a finished generation expires.
    """

    def __init__(self, id: str) -> None:
        self.id = id
        self.position: int | None = None
        self.envelope: Floats | None = None
        self.stage: StageProgress | None = None
        self.result: GenerationResult | None = None
        self.error: Exception | None = None
        self.expires_s: float | None = None
        self._news = asyncio.Event()

    @property
    def ended(self) -> bool:
        """Whether it has succeeded or failed."""
        return self.result is not None or self.error is not None

    def at(self, position: int) -> None:
        """Set the position in the queue and notify consumers."""
        self.position = position
        self.changed()

    def changed(self) -> None:
        """Notify consumers of a change."""
        news, self._news = self._news, asyncio.Event()
        news.set()

    async def events(self) -> AsyncIterator[pb.GenerateEvent]:
        """Yield events from the start of the generation until it ends.

        Raises:
            Exception: The error with which the generation failed.
        """
        position, envelope_sent, stage = None, False, None
        while True:
            news = self._news
            if self.ended and self.position is None:
                self.position = 0
            if self.position not in (None, position):
                position = self.position
                yield pb.GenerateEvent(accepted=pb.Accepted(id=self.id, queue_position=position))
            if self.envelope is not None and not envelope_sent:
                envelope_sent = True
                ready = pb.EnvelopeReady(envelope=pb.Envelope(rms=self.envelope))
                yield pb.GenerateEvent(envelope_ready=ready)
            if self.stage and self.stage != stage:
                stage = self.stage
                yield pb.GenerateEvent(progress=stage_to_proto(stage))
            if self.error:
                raise self.error
            if self.result:
                for event in self._results(self.result):
                    yield event
                return
            await news.wait()

    def _results(self, result: GenerationResult) -> Iterator[pb.GenerateEvent]:
        for i, take in enumerate(result.takes):
            for chunk in chunks(np.asarray(take.waveform, "<f4").tobytes()):
                yield pb.GenerateEvent(audio=pb.AudioChunk(variation=i, samples=chunk))
        finished = result_to_proto(self.id, result)
        if self.expires_s is not None:
            finished.expire_time.FromNanoseconds(round(self.expires_s * 1e9))
        yield pb.GenerateEvent(finished=finished)


def stage_to_proto(progress: StageProgress) -> pb.StageProgress:
    """Return the message of the progress of a stage."""
    return pb.StageProgress(stage=progress.stage, done_count=progress.done, total_count=progress.total or 0)
