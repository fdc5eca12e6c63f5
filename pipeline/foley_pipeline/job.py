"""One call of Video-Foley: all that it is told, and all that comes of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from foley import clip
from foley.envelope import Floats, frames, validate
from foley.errors import SettingError
from foley.loudness import Loudness
from foley.profiles import ProfileName
from foley.sampler import Sampling
from foley.stages import FlowMethod
from foley_pipeline.content import content_sha256
from foley_pipeline.foley import Foley, Take, override, vary
from foley_pipeline.prompt import Prompt
from foley_pipeline.rms2sound import Loop
from foley_pipeline.watch import Watch


@dataclass(frozen=True, eq=False)  # arrays have no one answer to ==
class Curve:
    """An envelope [frames at 100 Hz], and how many samples at 16 kHz the sound on it has.

    Raises:
        EnvelopeError: the envelope is none, or not as long as the sound.
    """

    envelope: Floats
    samples: int

    def __post_init__(self) -> None:
        validate(self.envelope, frames(self.samples / clip.SAMPLE_RATE_HZ))


@dataclass(frozen=True)
class Job:
    """What to make. What is left out is the profile's, and what that leaves out the bundle's.

    Attributes:
        source: a video whose envelope is predicted, or a curve instead.
        sampling: fields of `foley.sampler.Sampling` in place of the profile's.
        flow: optical flow in place of the profile's.

    Raises:
        SettingError: what is wrong whatever the server.
    """

    source: Path | Curve
    prompt: Prompt = field(default_factory=Prompt)
    profile: ProfileName = "balanced"
    flow: FlowMethod | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    variations: int = 1
    level: Loudness = "level"

    def __post_init__(self) -> None:
        # eta belongs to ddim, which may be the bundle's choice; the server's own check comes before any work
        plain = Sampling(sampler="ddim" if self.sampling.get("eta") else "dpm++")
        vary(override(plain, self.sampling), self.variations)


@dataclass(frozen=True, eq=False)
class Sound:
    """What comes of a job: the envelope [frames at 100 Hz], and a take a variation."""

    envelope: Floats
    takes: list[Take]


def run(
    foley: Foley,
    job: Job,
    watch: Watch,
    loop: Loop = "client",
    on_envelope: Callable[[Floats], None] = lambda envelope: None,
    max_sound_s: float = float("inf"),
) -> Sound:
    """Do `job`; `on_envelope` is called as soon as there is one.

    Raises what `Foley.predict_envelope`, `Foley.embed` and `Foley.generate` raise, and SettingError where all
    variations together last longer than `max_sound_s`.
    """

    def check_length(samples: int) -> None:
        seconds = job.variations * samples / clip.SAMPLE_RATE_HZ
        if seconds > max_sound_s:
            raise SettingError(
                f"that is {seconds:.0f} s of sound, the limit is {max_sound_s:g} s; ask for less at once"
            )

    profiled, profiled_flow = foley.profile(job.profile)
    sampling = override(profiled, job.sampling)
    job.prompt.check(sampling.guidance)  # before the long work on the video
    if isinstance(job.source, Curve):
        envelope, samples = job.source.envelope, job.source.samples
        check_length(samples)
        embeddings = foley.embed(job.prompt, watch)
        origin = {"video_sha256": None, "envelope": "given", "flow": None}
    else:
        video = foley.reader.video(job.source)
        samples = video.info.samples(clip.SAMPLE_RATE_HZ)
        check_length(samples)
        flow = job.flow or profiled_flow
        envelope, embeddings = foley.prepare(video, job.prompt, watch, flow)
        origin = {"video_sha256": content_sha256(job.source), "envelope": "predicted", "flow": flow}
    on_envelope(envelope)
    takes = foley.generate(
        envelope,
        samples,
        job.prompt,
        sampling,
        embeddings=embeddings,
        variations=job.variations,
        loop=loop,
        level=job.level,
        watch=watch,
    )
    return Sound(envelope, [replace(take, recipe={**origin, **take.recipe}) for take in takes])
