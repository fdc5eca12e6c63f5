"""Conversion of errors to gRPC statuses and back."""

import re

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2

from foley.errors import FoleyError, InvalidInput, Overloaded, ServerFailure, ServerUnavailable, TimedOut
from foley_pipeline.api.status import DOMAIN, from_status, reason, to_status


def family(cls):
    return [cls, *(one for child in cls.__subclasses__() for one in family(child))]


@pytest.mark.parametrize("cls", family(FoleyError))
@pytest.mark.parametrize("field", [None, "options.sampling.seed"])
@pytest.mark.parametrize("retry_after_s", [None, 0.25, 30.0])
def test_error_round_trip(cls, field, retry_after_s):
    error = cls("it is wrong; mend it")
    error.field, error.retry_after_s = field, retry_after_s
    status = status_pb2.Status.FromString(to_status(error, "request").SerializeToString())
    assert code_pb2.Code.Name(status.code) == cls.grpc_status
    assert hasattr(grpc.StatusCode, cls.grpc_status)
    received = from_status(status)
    assert (type(received), str(received), received.field, received.retry_after_s) == (
        cls,
        str(error),
        field,
        retry_after_s,
    )


@pytest.mark.parametrize("cls", family(FoleyError))
def test_details_follow_aip_193(cls):
    error = cls("it is wrong")
    error.field, error.retry_after_s = "video", 1.0
    status = to_status(error, "the request")
    types = [detail.type_url.rsplit(".", 1)[1] for detail in status.details]
    assert len(types) == len(set(types))
    assert ("BadRequest" in types) == issubclass(cls, InvalidInput)
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (info.domain, info.metadata["request_id"]) == (DOMAIN, "the request")
    assert re.fullmatch(r"[A-Z][A-Z0-9_]{0,62}", info.reason)


def test_reasons_are_unique():
    reasons = [reason(cls) for cls in family(FoleyError)]
    assert len(reasons) == len(set(reasons))


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("UNAVAILABLE", ServerUnavailable),
        ("RESOURCE_EXHAUSTED", Overloaded),
        ("INVALID_ARGUMENT", InvalidInput),
        ("DEADLINE_EXCEEDED", TimedOut),
        ("INTERNAL", ServerFailure),
        ("UNKNOWN", ServerFailure),
        ("DATA_LOSS", ServerFailure),
    ],
)
def test_foreign_status_maps_by_code(code, kind):
    other = any_pb2.Any()
    other.Pack(error_details_pb2.ErrorInfo(reason="MEDIA_ERROR", domain="example.com"))
    for details in ([], [other], [any_pb2.Any(type_url="type.googleapis.com/unknown", value=b"\xff")]):
        error = from_status(status_pb2.Status(code=code_pb2.Code.Value(code), message="no", details=details))
        assert type(error) is kind
        assert error.retry_after_s is None


def test_empty_status_has_message():
    assert "UNKNOWN" in str(from_status(status_pb2.Status(code=999)))
