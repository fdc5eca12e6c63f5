"""Converts errors to google.rpc.Status with details, and back; lossless for the classes in `foley.errors`."""

import re
from typing import Any

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from foley.errors import Cancelled, FoleyError, InvalidInput, ServerFailure

DOMAIN = "foley.v1"


def _family(kind: type[FoleyError]) -> list[type[FoleyError]]:
    return [kind, *(one for child in kind.__subclasses__() for one in _family(child))]


def reason(kind: type[FoleyError]) -> str:
    """Return the `reason` in ErrorInfo for an error class: MEDIA_TOO_LARGE for MediaTooLarge."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", kind.__name__).upper()


# Errors of intermediaries have no ErrorInfo: each status code maps to the first, most general class with that code.
_KINDS = {reason(kind): kind for kind in _family(FoleyError)}
_BY_CODE = {kind.grpc_status: kind for kind in reversed(_KINDS.values())} | {"INTERNAL": ServerFailure}


def to_status(error: FoleyError, request_id: str = "") -> status_pb2.Status:
    """Return the status of an error.

    Its details are ErrorInfo, BadRequest if a field is invalid, and RetryInfo if a retry may succeed.
    """
    metadata = {"request_id": request_id} | ({"field": error.field} if error.field else {})
    details: list[Any] = [error_details_pb2.ErrorInfo(reason=reason(type(error)), domain=DOMAIN, metadata=metadata)]
    if isinstance(error, InvalidInput) and error.field:
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=str(error))
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if error.retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(round(error.retry_after_s * 1000))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    packed = []
    for detail in details:
        packed.append(any_pb2.Any())
        packed[-1].Pack(detail)
    return status_pb2.Status(code=code_pb2.Code.Value(error.grpc_status), message=str(error), details=packed)


def from_status(status: status_pb2.Status) -> FoleyError:
    """Return the error that `to_status` encoded, or for the status of another server, the error for its code."""
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    retry_given = False
    for detail in status.details:
        detail.Unpack(info)
        retry_given |= detail.Unpack(retry)
    code = code_pb2.Code.Name(status.code) if status.code in code_pb2.Code.values() else "UNKNOWN"
    ours = _KINDS.get(info.reason) if info.domain == DOMAIN else None
    error = (ours or _BY_CODE.get(code, ServerFailure))(status.message or f"the server answered {code}")
    if ours:
        error.field = info.metadata.get("field")
    if retry_given:
        error.retry_after_s = retry.retry_delay.ToMilliseconds() / 1000
    return error


def from_call(error: grpc.RpcError) -> FoleyError:
    """Return the error of a failed call."""
    try:
        status = rpc_status.from_call(error)
    except (ValueError, NotImplementedError):  # the details contradict the code
        status = None
    if status is None:  # not from the API: it was not reached, or an intermediary answered
        code = error.code().value[0] if isinstance(error.code(), grpc.StatusCode) else code_pb2.UNKNOWN
        message = error.details() or ""
        if code == code_pb2.UNAVAILABLE:
            message = f"the server cannot be reached ({message}); check its address, and the certificates"
        status = status_pb2.Status(code=code, message=message)
    found = from_status(status)
    return Cancelled("stopped") if isinstance(found, Cancelled) else found
