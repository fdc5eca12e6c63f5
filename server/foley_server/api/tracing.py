"""OpenTelemetry: a span a call, which Triton's own spans are children of."""

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.propagate import extract, inject
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

from foley import __version__

_tracer = trace.get_tracer("foley_server.api", __version__)


@contextmanager
def exporting(endpoint: str | None, share: float) -> Iterator[None]:
    """Send spans of a share of the calls to an OTLP/HTTP endpoint, if there is one, while this lasts."""
    if endpoint is None:
        yield
        return
    resource = Resource.create({"service.name": "foley-api", "service.version": __version__})
    provider = TracerProvider(resource=resource, sampler=ParentBased(TraceIdRatioBased(share)), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint)))
    trace.set_tracer_provider(provider)
    try:
        yield
    finally:
        provider.shutdown()


@contextmanager
def call_span(method: str, request_id: str, metadata: dict[str, str]) -> Iterator[trace.Span]:
    """The span of a call, a child of the caller's where its metadata bring a `traceparent`."""
    attributes = {"rpc.system": "grpc", "rpc.method": method, "foley.request_id": request_id}
    with _tracer.start_as_current_span(
        method.strip("/"), extract(metadata), trace.SpanKind.SERVER, attributes, record_exception=False
    ) as span:
        yield span


def trace_headers() -> dict[str, str]:
    """What tells Triton which span its own belong to; nothing where none is recorded, or Triton would record all."""
    headers: dict[str, str] = {}
    if trace.get_current_span().is_recording():
        inject(headers)
    return headers
