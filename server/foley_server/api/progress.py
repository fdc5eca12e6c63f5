"""A generation that is under way or done, as those who watch it see it."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import numpy as np

from foley.envelope import Floats
from foley_pipeline.api import foley_pb2 as pb
from foley_pipeline.api.messages import generation_message, pieces
from foley_pipeline.job import Sound


class Progress:
    """How far a generation is. Belongs to one event loop; any number may follow its `events`.

    Who reads slowly misses steps, not memory: an event says what is so now, not what was in between.
    """

    def __init__(self, id: str) -> None:
        self.id = id
        self.position: int | None = None  # in front of it; None as long as nobody knows
        self.envelope: Floats | None = None
        self.done = self.total = 0  # steps of the denoising
        self.stage: tuple[str, int, int | None] | None = None  # what is worked on now, how much of how much is done
        self.sound: Sound | None = None
        self.error: Exception | None = None
        self.expires_s: float | None = None  # when a finished one is forgotten, since 1970
        self._news = asyncio.Event()

    @property
    def ended(self) -> bool:
        """Whether nothing more happens."""
        return self.sound is not None or self.error is not None

    def at(self, position: int) -> None:
        """So many are in front."""
        self.position = position
        self.changed()

    def changed(self) -> None:
        """Tell those who follow."""
        news, self._news = self._news, asyncio.Event()
        news.set()

    async def events(self) -> AsyncIterator[pb.GenerateEvent]:
        """What has happened, and what happens, to the end. Raises the error that the generation ends with."""
        position, envelope_told, done = None, False, 0
        while True:
            news = self._news
            if self.ended and self.position is None:
                self.position = 0
            if self.position not in (None, position):
                position = self.position
                yield pb.GenerateEvent(accepted=pb.Accepted(id=self.id, queue_position=position))
            if self.envelope is not None and not envelope_told:
                envelope_told = True
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
            await news.wait()

    def _results(self, sound: Sound) -> Iterator[pb.GenerateEvent]:
        for i, take in enumerate(sound.takes):
            for piece in pieces(np.asarray(take.waveform, "<f4").tobytes()):
                yield pb.GenerateEvent(audio=pb.AudioChunk(variation=i, samples=piece))
        finished = generation_message(self.id, sound.takes)
        if self.expires_s is not None:
            finished.expire_time.FromNanoseconds(round(self.expires_s * 1e9))
        yield pb.GenerateEvent(finished=finished)
