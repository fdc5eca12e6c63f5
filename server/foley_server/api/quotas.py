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
        settings, media_bytes = self.settings, self.settings.media_mib << 20
        if principal.entry is None:  # anonymous callers share the server's limits
            return Quota(settings.stored, settings.stored, media_bytes, media_bytes)
        queued = settings.owner_stored if principal.queued is None else principal.queued
        mib = settings.owner_mib if principal.mib is None else principal.mib
        return Quota(settings.stored, queued, media_bytes, mib << 20, principal.rows_per_hour)
