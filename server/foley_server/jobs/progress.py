"""Observable progress of a job."""

import asyncio
import json
from collections.abc import AsyncIterator

import numpy as np

from foley.envelope import Floats
from foley.errors import NotFound
from foley_pipeline.api import foley_pb2 as pb
from foley_pipeline.progress import Progress as StageProgress
from foley_server.jobs.store import Job

ENVELOPE = "envelope"  # its place among the stages


class Progress:
    """Progress and end of one job. Not thread-safe: use it from one event loop.

    Any number of consumers may iterate over `events`. Each event reports the current state of a stage, so a slow
    consumer misses intermediate steps instead of accumulating a backlog, but never the last one.

    Attributes:
        id: Id of the job.
        position: Position in the queue, 0 when running; None while unknown.
        stage: Latest progress of a stage; None before the first.
        envelope: The envelope; None before it is known.
        over: Whether the job has ended.
        ended: The job in its final state; None before, and if it was removed.
        version: Number of reports.
        starts: Number of starts of the job; the stages are those of the last one.
        local: Whether this process runs the job, and reports its progress here before it reports to the database.
    """

    def __init__(self, id: str) -> None:
        self.id = id
        self.version = 0
        self.local = False
        self.over = False
        self.ended: Job | None = None
        self.position: int | None = None
        self._change = asyncio.Event()
        self.restart(0)

    def restart(self, starts: int) -> None:
        """Forget the stages, because the job starts again; `starts` is its number of starts."""
        self.starts = starts
        self.stage: StageProgress | None = None
        self.envelope: Floats | None = None
        self._latest: dict[str, pb.GenerateEvent] = {}  # of every stage, and of the envelope, in order of appearance

    def set_position(self, position: int) -> None:
        """Set the position in the queue."""
        if self.position != position:
            self.position = position
            self._changed()

    def report(self, progress: StageProgress) -> None:
        """Set the progress of a stage, or the envelope."""
        if progress.envelope is not None:
            self.envelope = np.asarray(progress.envelope, np.float32)
            ready = pb.EnvelopeReady(envelope=pb.Envelope(rms=self.envelope))
            self._latest[ENVELOPE] = pb.GenerateEvent(envelope_ready=ready)
        elif progress.seconds is None:
            self.stage = progress
            self._latest[progress.stage] = pb.GenerateEvent(progress=stage_to_proto(progress))
        self.version += 1
        self._changed()

    def end(self, job: Job | None) -> None:
        """Set the final state; None if the job was removed."""
        if not self.over:
            self.over, self.ended = True, job
            self._changed()

    def dumps(self) -> str:
        """Return the stages as JSON, for processes that do not run the job."""
        stages = [(name, event.progress.done_count, event.progress.total_count) for name, event in self._latest.items()]
        return json.dumps(stages)

    def load(self, document: str, envelope: Floats | None) -> None:
        """Set the stages from the JSON of `dumps`; the envelope only if it is given."""
        for name, done, total in json.loads(document):
            known = self._latest.get(name)
            if name == ENVELOPE:
                if known is None and envelope is not None:
                    self.report(StageProgress(name, envelope=envelope))
            elif known is None or (known.progress.done_count, known.progress.total_count) != (done, total):
                self.report(StageProgress(name, done, total or None))

    async def wait(self) -> Job:
        """Wait until the job has ended, and return it.

        Raises:
            NotFound: It was removed.
        """
        while not self.over:
            await self._change.wait()
        if self.ended is None:
            raise NotFound(f"the job {self.id} was removed")
        return self.ended

    async def events(self) -> AsyncIterator[pb.GenerateEvent]:
        """Yield events from the start of the job until it has ended."""
        position, sent = None, dict[str, pb.GenerateEvent]()
        while True:
            change, over = self._change, self.over
            if over and self.position is None:
                self.position = 0
            if self.position not in (None, position):
                position = self.position
                yield pb.GenerateEvent(accepted=pb.Accepted(id=self.id, queue_position=position))
            for kind, event in list(self._latest.items()):
                if sent.get(kind) is not event:
                    sent[kind] = event
                    yield event
            if over:
                return
            await change.wait()

    def _changed(self) -> None:
        change, self._change = self._change, asyncio.Event()
        change.set()


def stage_to_proto(progress: StageProgress) -> pb.StageProgress:
    """Return the message of the progress of a stage."""
    return pb.StageProgress(stage=progress.stage, done_count=progress.done, total_count=progress.total or 0)
