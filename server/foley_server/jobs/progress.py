"""Observable progress of a generation."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import numpy as np

from foley_pipeline.api import foley_pb2 as pb
from foley_pipeline.api.messages import chunks, result_to_proto
from foley_pipeline.progress import Progress as StageProgress
from foley_pipeline.result import GenerationResult


class Progress:
    """Progress and outcome of one generation. Not thread-safe: use it from one event loop.

    Any number of consumers may iterate over `events`. Each event reports the current state of a stage, so a slow
    consumer misses intermediate steps instead of accumulating a backlog, but never the last one.

    Attributes:
        id: Id of the generation or request.
        position: Position in the queue, 0 when running; None while unknown.
        stage: Latest progress of a stage; None before the first.
        result: Result, if it succeeded.
        error: Error, if it failed.
        expires_s: Unix time at which a finished generation expires.
    """

    def __init__(self, id: str) -> None:
        self.id = id
        self.position: int | None = None
        self.stage: StageProgress | None = None
        self.result: GenerationResult | None = None
        self.error: Exception | None = None
        self.expires_s: float | None = None
        self._change = asyncio.Event()
        self._latest: dict[str, pb.GenerateEvent] = {}  # of every stage, and of the envelope, in order of appearance

    @property
    def ended(self) -> bool:
        """Whether it has succeeded or failed."""
        return self.result is not None or self.error is not None

    def set_position(self, position: int) -> None:
        """Set the position in the queue and notify consumers."""
        self.position = position
        self.changed()

    def report(self, progress: StageProgress) -> None:
        """Set the progress of a stage, or the envelope, and notify consumers."""
        if progress.envelope is not None:
            ready = pb.EnvelopeReady(envelope=pb.Envelope(rms=progress.envelope))
            self._latest["envelope"] = pb.GenerateEvent(envelope_ready=ready)
        elif progress.seconds is None:
            self.stage = progress
            self._latest[progress.stage] = pb.GenerateEvent(progress=stage_to_proto(progress))
        self.changed()

    def changed(self) -> None:
        """Notify consumers of a change."""
        change, self._change = self._change, asyncio.Event()
        change.set()

    async def events(self) -> AsyncIterator[pb.GenerateEvent]:
        """Yield events from the start of the generation until it ends.

        Raises:
            Exception: The error with which the generation failed.
        """
        position, sent = None, dict[str, pb.GenerateEvent]()
        while True:
            change, ended = self._change, self.ended
            if ended and self.position is None:
                self.position = 0
            if self.position not in (None, position):
                position = self.position
                yield pb.GenerateEvent(accepted=pb.Accepted(id=self.id, queue_position=position))
            for kind, event in list(self._latest.items()):
                if sent.get(kind) is not event:
                    sent[kind] = event
                    yield event
            if ended and self.error:
                raise self.error
            if ended and self.result:
                for event in self._results(self.result):
                    yield event
                return
            await change.wait()

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
