"""Implementation of `google.longrunning.Operations` for generations (AIP-151)."""

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from google.longrunning import operations_pb2, operations_pb2_grpc
from google.protobuf import empty_pb2
from google.rpc import status_pb2

from foley.errors import InvalidInput
from foley_pipeline.api import foley_pb2 as pb
from foley_pipeline.api.messages import field
from foley_pipeline.api.status import to_status
from foley_server.api.interceptor import caller
from foley_server.jobs.jobs import Jobs, error_of
from foley_server.jobs.store import Job

DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE = 50, 100
MAX_WAIT_S = 3600.0

_STATES = {
    "queued": pb.GENERATION_STATE_QUEUED,
    "running": pb.GENERATION_STATE_RUNNING,
    "succeeded": pb.GENERATION_STATE_SUCCEEDED,
    "failed": pb.GENERATION_STATE_FAILED,
    "cancelled": pb.GENERATION_STATE_CANCELLED,
}


@dataclass
class Operations(operations_pb2_grpc.OperationsServicer):
    """Serves the operations of the caller; those of other callers are NOT_FOUND."""

    jobs: Jobs

    async def GetOperation(self, request: operations_pb2.GetOperationRequest, context: Any) -> Any:
        """Return the state of an operation."""
        return await operation(await self._find(request.name), self.jobs)

    async def ListOperations(self, request: operations_pb2.ListOperationsRequest, context: Any) -> Any:
        """Return a page of the caller's operations, newest first."""
        size = min(request.page_size or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)
        with field("page_size"):
            if size < 1:
                raise InvalidInput(f"page_size is {size}; request 1 to {MAX_PAGE_SIZE}")
        with field("filter"):
            if request.filter:
                raise InvalidInput("operations cannot be filtered; omit the filter")
        with field("page_token"):
            if request.page_token and not (request.page_token.isascii() and request.page_token.isdigit()):
                raise InvalidInput("the page_token is not valid; use next_page_token of the previous page")
            before = min(int(request.page_token[:18] or 2**62), 2**62)
        page = await self.jobs.database.run(self.jobs.store.page, caller.get().name, before, size)
        positions = await self.jobs.positions(page)
        return operations_pb2.ListOperationsResponse(
            operations=[_message(job, self.jobs, positions.get(job.id, 0)) for job in page],
            next_page_token=str(page[-1].number) if len(page) == size else "",
        )

    async def CancelOperation(self, request: operations_pb2.CancelOperationRequest, context: Any) -> Any:
        """Cancel an operation; it stops within one denoising step."""
        await self.jobs.cancel(await self._find(request.name))
        return empty_pb2.Empty()

    async def DeleteOperation(self, request: operations_pb2.DeleteOperationRequest, context: Any) -> Any:
        """Delete an operation that has ended."""
        await self.jobs.delete(await self._find(request.name))
        return empty_pb2.Empty()

    async def WaitOperation(self, request: operations_pb2.WaitOperationRequest, context: Any) -> Any:
        """Wait until an operation has ended or the timeout has expired, and return its state."""
        wait_s = request.timeout.ToNanoseconds() / 1e9 if request.HasField("timeout") else MAX_WAIT_S
        job = await self._find(request.name)
        if not job.ended:
            with self.jobs.watch(job) as progress, suppress(asyncio.TimeoutError):
                await asyncio.wait_for(progress.wait(), min(max(wait_s, 0.0), MAX_WAIT_S))
            job = await self._find(request.name)
        return await operation(job, self.jobs)

    async def _find(self, name: str) -> Job:
        return await self.jobs.find(caller.get().name, name)


async def operation(job: Job, jobs: Jobs) -> operations_pb2.Operation:
    """Return the operation message of a generation."""
    return _message(job, jobs, (await jobs.positions([job])).get(job.id, 0))


def _message(job: Job, jobs: Jobs, position: int) -> operations_pb2.Operation:
    metadata = pb.GenerationMetadata(request_id=job.request_id or "", state=_STATES[job.state])
    for stamp, seconds in (
        (metadata.create_time, job.created_s),
        (metadata.start_time, job.started_s),
        (metadata.end_time, job.ended_s),
    ):
        if seconds is not None:
            stamp.FromNanoseconds(round(seconds * 1e9))
    metadata.queue_position = position
    if job.state == "running" and (stage := jobs.stage(job)):
        metadata.progress.CopyFrom(stage)
    message = operations_pb2.Operation(name=f"operations/{job.id}", done=job.ended)
    message.metadata.Pack(metadata)
    if job.state == "succeeded":
        message.response.Pack(jobs.generation(job))
    elif job.ended:
        error = error_of(job)
        message.error.CopyFrom(to_status(error, job.id) if error else status_pb2.Status())
    return message
