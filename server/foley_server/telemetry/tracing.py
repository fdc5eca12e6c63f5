"""OpenTelemetry tracing: one span per call, the parent of Triton's spans."""

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
    """Export spans while the context is active.

    Args:
        endpoint: OTLP/HTTP endpoint; None turns tracing off.
        share: Fraction of calls to sample, 0 to 1, unless the caller's trace context decides.
    """
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
    """Open the span of a call, a child of the caller's span if `metadata` has a `traceparent`."""
    attributes = {"rpc.system": "grpc", "rpc.method": method, "foley.request_id": request_id}
    with _tracer.start_as_current_span(
        method.strip("/"), extract(metadata), trace.SpanKind.SERVER, attributes, record_exception=False
    ) as span:
        yield span


def trace_headers() -> dict[str, str]:
    """Return the trace context headers for calls to Triton.

    Empty if the current span is not recorded: Triton records every request that has a trace context.
    """
    headers: dict[str, str] = {}
    if trace.get_current_span().is_recording():
        inject(headers)
    return headers
