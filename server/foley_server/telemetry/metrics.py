"""Prometheus metrics of the API."""

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    Metric,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from foley import __version__

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000, 2500)
DECODER_OUTCOMES = ("ok", "refused", "crashed", "timeout", "cancelled")


class Metrics:
    """The metrics of the API, prefixed `foley_api_`, and those of its process, prefixed `process_`.

    Gauges are evaluated at each scrape, in another thread: their functions must be thread-safe, and return at once.
    """

    def __init__(self) -> None:
        disable_created_metrics()
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._build = Info("foley_api_build", "Version of the server, and its bundle.", registry=registry)
        self.build("", "")
        self.requests = Counter("foley_api_requests", "Completed calls.", ["method", "code"], registry=registry)
        self.request_seconds = Histogram(
            "foley_api_request_seconds", "Seconds per call.", ["method"], buckets=_SECONDS, registry=registry
        )
        self.active = Gauge("foley_api_active_requests", "Calls in progress.", ["method"], registry=registry)
        self.upload_bytes = Counter("foley_api_upload_bytes", "Bytes of uploaded media.", registry=registry)
        self.media_errors = Counter(
            "foley_api_media_errors", "Failed accesses to the media storage.", registry=registry
        )
        self.database_errors = Counter("foley_api_database_errors", "Failed accesses to the store.", registry=registry)
        self._decoders = Counter(
            "foley_api_decoders", "Ended decoder processes by outcome.", ["outcome"], registry=registry
        )
        for outcome in DECODER_OUTCOMES:
            self._decoders.labels(outcome)  # 0 until the first one
        self._stages = Histogram(
            "foley_api_stage_seconds", "Seconds per pipeline stage.", ["stage"], buckets=_SECONDS, registry=registry
        )

    def build(self, bundle: str, digest: str) -> None:
        """Set the name and the digest of the bundle in `foley_api_build_info`."""
        self._build.info({"version": __version__, "bundle": bundle, "digest": digest})

    def gauge(self, name: str, help_text: str, value: Callable[[], float | None]) -> None:
        """Add a gauge `foley_api_NAME`; it is absent while `value` returns None."""

        def values() -> Iterator[tuple[list[str], float]]:
            if (now := value()) is not None:
                yield [], now

        self.registry.register(_Gauges(f"foley_api_{name}", help_text, (), values))

    def gauges(self, name: str, help_text: str, label: str, values: Callable[[], Mapping[str, float]]) -> None:
        """Add gauges `foley_api_NAME{label="KEY"}`, one for each key that `values` returns."""

        def labelled() -> Iterator[tuple[list[str], float]]:
            for key, value in values().items():
                yield [key], value

        self.registry.register(_Gauges(f"foley_api_{name}", help_text, (label,), labelled))

    def stage(self, stage: str, seconds: float) -> None:
        """Observe the duration of a pipeline stage."""
        self._stages.labels(stage).observe(seconds)

    def decoder(self, outcome: str) -> None:
        """Count a decoder process that has ended with one of `DECODER_OUTCOMES`. Thread-safe."""
        self._decoders.labels(outcome).inc()


class _Gauges(Collector):
    def __init__(
        self,
        name: str,
        help_text: str,
        labels: tuple[str, ...],
        values: Callable[[], Iterator[tuple[list[str], float]]],
    ) -> None:
        self._name, self._help, self._labels, self._values = name, help_text, labels, values

    def describe(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(self._name, self._help, labels=self._labels)

    def collect(self) -> Iterator[Metric]:
        family = GaugeMetricFamily(self._name, self._help, labels=self._labels)
        for labels, value in self._values():
            family.add_metric(labels, value)
        yield family
