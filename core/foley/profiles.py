"""Profiles: how much time a sound is worth, in one word."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from foley.stages import FlowMethod

ProfileName = Literal["quality", "balanced", "fast"]


@dataclass(frozen=True)
class Profile:
    """What a profile asks for: the optical flow, and what it sets in place of the bundle's sampling defaults."""

    flow: FlowMethod
    sampling: Mapping[str, Any]


PROFILES: Mapping[ProfileName, Profile] = MappingProxyType(
    {
        "quality": Profile("exact", {"steps": 50}),
        "balanced": Profile("exact", {}),
        "fast": Profile("warm", {"steps": 10, "spacing": "log-snr", "guidance_interval": (0.3, 100.0)}),
    }
)
"""Chosen from the table in `docs/performance.md`. `balanced`, the default, is the bundle's own: every network exact."""
