"""Limits of each caller at the acceptance of a job: those of its token, else those of the server."""

from dataclasses import dataclass

from foley_server.api.settings import Settings
from foley_server.api.tokens import Principal
from foley_server.jobs.store import Quota


@dataclass(frozen=True)
class Quotas:
    """Limits of callers.

    Attributes:
        settings: The server's limits.
    """

    settings: Settings

    def of(self, principal: Principal) -> Quota:
        """Return the limits of a caller."""
        settings, entry = self.settings, principal.entry
        if entry is None:  # anonymous callers share the server's limits
            return Quota(settings.stored, settings.stored, settings.media_mib << 20, settings.media_mib << 20)
        return Quota(
            settings.stored,
            settings.owner_stored if entry.queued is None else entry.queued,
            settings.media_mib << 20,
            (settings.owner_mib if entry.mib is None else entry.mib) << 20,
            entry.rows_per_hour,
        )
