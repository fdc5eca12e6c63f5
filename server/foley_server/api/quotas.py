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
        return Quota(
            settings.stored,
            _first(entry and entry.queued, settings.owner_stored if entry else settings.stored),
            settings.media_mib << 20,
            _first(entry and entry.mib, settings.owner_mib if entry else settings.media_mib) << 20,
            entry.rows_per_hour if entry else None,
        )


def _first(value: int | None, default: int) -> int:
    return default if value is None else value
