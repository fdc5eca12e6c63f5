"""Observable progress of a generation."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import numpy as np

from foley.envelope import Floats
from foley_pipeline.api import foley_pb2 as pb
from foley_pipeline.api.messages import generation_message, pieces
from foley_pipeline.job import Sound


class Progress:
    """Progress and outcome of one generation. Not thread-safe: use it from one event loop.

    Any number of consumers may iterate over `events`. Each event reports the current state, so a slow consumer misses
    intermediate steps instead of accumulating a backlog.

    Attributes:
        id: Id of the generation or request.
        position: Position in the queue, 0 when running; None while unknown.
        envelope: Envelope, once known.
        done: Number of denoising steps done.
        total: Number of denoising steps in all.
        stage: Current stage as (name, done, total).
        sound: Result, if it succeeded.
        error: Error, if it failed.
        expires_s: Unix time at which a finished generation expires.
    """

    def __init__(self, id: str) -> None:
        self.id = id
        self.position: int | None = None
        self.envelope: Floats | None = None
        self.done = self.total = 0
        self.stage: tuple[str, int, int | None] | None = None
        self.sound: Sound | None = None
        self.error: Exception | None = None
        self.expires_s: float | None = None
        self._change = asyncio.Event()

    @property
    def ended(self) -> bool:
        """Whether it has succeeded or failed."""
        return self.sound is not None or self.error is not None

    def set_position(self, position: int) -> None:
        """Set the position in the queue and notify consumers."""
        self.position = position
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
        position, envelope_sent, done = None, False, 0
        while True:
            change = self._change
            if self.ended and self.position is None:
                self.position = 0
            if self.position not in (None, position):
                position = self.position
                yield pb.GenerateEvent(accepted=pb.Accepted(id=self.id, queue_position=position))
            if self.envelope is not None and not envelope_sent:
                envelope_sent = True
                ready = pb.EnvelopeReady(envelope=pb.Envelope(rms=self.envelope))
                yield pb.GenerateEvent(envelope_ready=ready)
            if self.done != done:
                done = self.done
                yield pb.GenerateEvent(step_done=pb.StepDone(done_count=done, total_count=self.total))
            if self.error:
                raise self.error
            if self.sound:
                for event in self._results(self.sound):
                    yield event
                return
            await change.wait()

    def _results(self, sound: Sound) -> Iterator[pb.GenerateEvent]:
        for i, take in enumerate(sound.takes):
            for piece in pieces(np.asarray(take.waveform, "<f4").tobytes()):
                yield pb.GenerateEvent(audio=pb.AudioChunk(variation=i, samples=piece))
        finished = generation_message(self.id, sound.takes)
        if self.expires_s is not None:
            finished.expire_time.FromNanoseconds(round(self.expires_s * 1e9))
        yield pb.GenerateEvent(finished=finished)
