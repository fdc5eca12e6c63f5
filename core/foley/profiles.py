"""Profiles, and the resolution of a request's options to the settings that it runs with."""

from collections.abc import Collection, Mapping
from dataclasses import fields
from types import MappingProxyType

from foley.manifest import SamplingDefaults
from foley.options import GenerateOptions, OpticalFlow, Profile, SamplingOptions
from foley.sampler import Sampling
from foley.stages import features_stage

PROFILES: Mapping[Profile, GenerateOptions] = MappingProxyType(
    {
        "quality": GenerateOptions(steps=50),
        "balanced": GenerateOptions(),
        "fast": GenerateOptions(steps=10, timestep_spacing="log-snr", guidance_interval=(0.3, 100.0), flow="warm"),
    }
)
"""Options of each profile, for those that a request does not set; chosen from the table in docs/performance.md."""


def resolve_sampling(options: SamplingOptions, defaults: SamplingDefaults) -> Sampling:
    """Resolve the sampling of a request: its options, then its profile, then the bundle's `defaults`.

    Raises:
        SettingError: An option conflicts with another one, or with a setting of the profile or the bundle.
    """
    names = {field.name for field in fields(Sampling)}
    own = options.model_dump(include=names, exclude_none=True)
    profile = PROFILES[options.profile].model_dump(include=names - {"seed"}, exclude_none=True)
    chosen = {**defaults.model_dump(), **profile, **own}
    if chosen["sampler"] == "ddim" and "timestep_spacing" not in own:
        chosen["timestep_spacing"] = "uniform"  # the profiles' spacings are for dpm++
    return Sampling(**chosen)


def resolve_flow(options: GenerateOptions, stages: Collection[str]) -> OpticalFlow:
    """Resolve the optical flow of a request: its option, then its profile's if it is served, else "default".

    Args:
        options: Options of the request.
        stages: Names of the served models.
    """
    wanted = options.flow or PROFILES[options.profile].flow or "default"
    return wanted if options.flow or features_stage(wanted) in stages else "default"
