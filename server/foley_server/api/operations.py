"""Implementation of `google.longrunning.Operations` for generations (AIP-151)."""

import asyncio
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
from foley_server.jobs.generations import Generations
from foley_server.jobs.progress import stage_to_proto
from foley_server.jobs.store import Row

DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE = 50, 500
POLL_S = 0.2
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

    generations: Generations

    async def GetOperation(self, request: operations_pb2.GetOperationRequest, context: Any) -> Any:
        """Return the state of an operation."""
        return operation(await self._find(request.name), self.generations)

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
        rows = await asyncio.to_thread(self.generations.store.page, caller.get().name, before, size)
        return operations_pb2.ListOperationsResponse(
            operations=[operation(row, self.generations) for row in rows],
            next_page_token=str(rows[-1].number) if len(rows) == size else "",
        )

    async def CancelOperation(self, request: operations_pb2.CancelOperationRequest, context: Any) -> Any:
        """Cancel an operation; it stops within one denoising step."""
        await self.generations.cancel(await self._find(request.name))
        return empty_pb2.Empty()

    async def DeleteOperation(self, request: operations_pb2.DeleteOperationRequest, context: Any) -> Any:
        """Delete an operation that has ended."""
        await self.generations.delete(await self._find(request.name))
        return empty_pb2.Empty()

    async def WaitOperation(self, request: operations_pb2.WaitOperationRequest, context: Any) -> Any:
        """Wait until an operation has ended or the timeout has expired, and return its state."""
        wait_s = request.timeout.ToNanoseconds() / 1e9 if request.HasField("timeout") else MAX_WAIT_S
        deadline = asyncio.get_running_loop().time() + min(wait_s, MAX_WAIT_S)
        async with self.generations.engine.watching():
            row = await self._find(request.name)
            while not row.ended and asyncio.get_running_loop().time() < deadline:
                await asyncio.sleep(POLL_S)
                row = await self._find(request.name)
        return operation(row, self.generations)

    async def _find(self, name: str) -> Row:
        return await self.generations.find(caller.get().name, name)


def operation(row: Row, generations: Generations) -> operations_pb2.Operation:
    """Return the operation message of a generation."""
    metadata = pb.GenerationMetadata(request_id=row.request_id, state=_STATES[row.state])
    for stamp, seconds in (
        (metadata.create_time, row.created_s),
        (metadata.start_time, row.started_s),
        (metadata.end_time, row.ended_s),
    ):
        if seconds is not None:
            stamp.FromNanoseconds(round(seconds * 1e9))
    if live := generations.live(row):
        metadata.queue_position = live.position or 0
        if live.stage and row.state == "running":  # not the stage at which an earlier attempt ended
            metadata.progress.CopyFrom(stage_to_proto(live.stage))
    elif row.state == "queued":
        metadata.queue_position = 1 + generations.store.count_ahead(row.number)
    message = operations_pb2.Operation(name=f"operations/{row.id}", done=row.ended)
    message.metadata.Pack(metadata)
    if row.state == "succeeded":
        message.response.Pack(pb.Generation.FromString(row.result or b""))
    elif row.ended:
        error = generations.error(row)
        message.error.CopyFrom(to_status(error, row.id) if error else status_pb2.Status())
    return message
