"""The gauges of the API process."""

from collections.abc import Mapping

from foley_server.api.settings import Settings
from foley_server.jobs.jobs import Jobs
from foley_server.jobs.workers import Workers
from foley_server.telemetry.metrics import Metrics
from foley_server.telemetry.samples import FreeSpace, LoopLag, Snapshot

LIMITS = (
    "running",
    "waiting",
    "stored",
    "owner_stored",
    "media_mib",
    "owner_mib",
    "upload_mib",
    "duration",
    "sound",
    "max_steps",
    "request_timeout",
    "decoder_mib",
)
STATES = ("queued", "running")


def register_gauges(
    metrics: Metrics,
    settings: Settings,
    jobs: Jobs,
    workers: Workers,
    counts: Snapshot,
    lag: LoopLag,
    space: FreeSpace,
    sandbox_level: str,
) -> None:
    """Register gauges that are evaluated at each scrape; none waits for anything.

    Args:
        metrics: Receives the gauges.
        settings: The settings, for the limits.
        jobs: The calls of this process, and its Tritons.
        workers: The running jobs of this process.
        counts: Snapshot of the store: "queued" and "running" jobs, "oldest_queued_s", and "bytes" of media.
        lag: Lag of the event loop.
        space: Free space of the data folder.
        sandbox_level: The sandbox that is in force.
    """

    def available() -> dict[str, float]:
        return {name: float(one.available) for name, one in jobs.tritons.statuses.items()}

    def starts() -> dict[str, float]:
        return {name: float(one.starts) for name, one in jobs.tritons.statuses.items()}

    limits = {name: float(getattr(settings, name)) for name in LIMITS}
    metrics.gauges("limit", "Limits in the settings.", "setting", lambda: limits)
    metrics.gauge("calls", "Jobs for which callers of this process wait.", lambda: jobs.calls)
    metrics.gauge("running", "Jobs that this process runs.", lambda: workers.active)
    metrics.gauges("jobs", "Jobs in the store.", "state", lambda: _selected(counts.values(), STATES))
    metrics.gauge(
        "oldest_queued_seconds", "Age of the oldest queued job.", lambda: counts.values().get("oldest_queued_s")
    )
    metrics.gauge("stored_bytes", "Bytes of stored media.", lambda: counts.values().get("bytes"))
    metrics.gauge("disk_free_bytes", "Free space of the data folder.", space.bytes)
    metrics.gauge("loop_lag_seconds", "Largest lag of the event loop in the last minute.", lag.worst_s)
    metrics.gauges("triton_available", "Whether a Triton takes work.", "triton", available)
    metrics.gauges("triton_starts", "Starts of a Triton, or connections to it.", "triton", starts)
    metrics.gauges("sandbox_level", "The sandbox that is in force.", "level", lambda: {sandbox_level: 1.0})


def _selected(values: Mapping[str, float], names: tuple[str, ...]) -> dict[str, float]:
    return {name: values[name] for name in names if name in values}
