"""The gauges of the API process."""

from collections.abc import Callable, Mapping

from foley_server.api.settings import Settings
from foley_server.jobs.request_queue import RequestQueue
from foley_server.telemetry.metrics import Metrics
from foley_server.telemetry.samples import FreeSpace, LoopLag, Snapshot

LIMITS = ("running", "waiting", "stored", "upload_mib", "duration", "sound", "request_timeout", "decoder_mib")
STATES = ("queued", "running")


def register_gauges(
    metrics: Metrics,
    settings: Settings,
    queue: RequestQueue,
    jobs: Snapshot,
    lag: LoopLag,
    space: FreeSpace,
    tritons: Callable[[], Mapping[str, bool]],
    sandbox_level: str,
) -> None:
    """Register gauges that are evaluated at each scrape; none waits for anything.

    Args:
        metrics: Receives the gauges.
        settings: The settings, for the limits.
        queue: The queue of running and waiting requests.
        jobs: Snapshot of the store: "queued" and "running" jobs, "oldest_queued_s", and "bytes" of media.
        lag: Lag of the event loop.
        space: Free space of the data folder.
        tritons: Returns whether each Triton takes work, by its name or address.
        sandbox_level: The sandbox that is in force.
    """
    limits = {name: float(getattr(settings, name)) for name in LIMITS}
    metrics.gauges("limit", "Limits in the settings.", "setting", lambda: limits)
    metrics.gauge("admitted", "Admitted requests.", lambda: queue.admitted)
    metrics.gauge("waiting", "Admitted requests and jobs that wait for a slot.", lambda: queue.waiting)
    metrics.gauges("jobs", "Jobs in the store.", "state", lambda: _selected(jobs.values(), STATES))
    metrics.gauge(
        "oldest_queued_seconds", "Age of the oldest queued job.", lambda: jobs.values().get("oldest_queued_s")
    )
    metrics.gauge("stored_bytes", "Bytes of stored media.", lambda: jobs.values().get("bytes"))
    metrics.gauge("disk_free_bytes", "Free space of the data folder.", space.bytes)
    metrics.gauge("loop_lag_seconds", "Largest lag of the event loop in the last minute.", lag.worst_s)
    metrics.gauges("triton_available", "Whether a Triton takes work.", "triton", tritons)
    metrics.gauges("sandbox_level", "The sandbox that is in force.", "level", lambda: {sandbox_level: 1.0})


def _selected(values: Mapping[str, float], names: tuple[str, ...]) -> dict[str, float]:
    return {name: values[name] for name in names if name in values}
