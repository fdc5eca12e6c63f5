"""A generation from request to result: a job, its result, and the function that runs it."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from foley import clip
from foley.envelope import Floats, frames, validate
from foley.errors import SettingError
from foley.options import GenerateOptions
from foley.profiles import resolve_flow, resolve_sampling
from foley_pipeline.content import content_sha256
from foley_pipeline.foley import Foley, Take
from foley_pipeline.prompt import Prompt
from foley_pipeline.rms2sound import Loop
from foley_pipeline.watch import Watch


@dataclass(frozen=True, eq=False)  # arrays compare elementwise
class Curve:
    """An envelope as the source of a generation.

    Attributes:
        envelope: Linear RMS, float32 [frames at 100 Hz].
        samples: Length of the sound, in samples at 16 kHz.

    Raises:
        EnvelopeError: The envelope is invalid, or its length does not match `samples`.
    """

    envelope: Floats
    samples: int

    def __post_init__(self) -> None:
        validate(self.envelope, frames(self.samples / clip.SAMPLE_RATE_HZ))


@dataclass(frozen=True)
class Job:
    """A request for a generation.

    Attributes:
        source: A video, whose envelope is predicted, or an envelope.
        options: Options; those that are not set come from the profile, else from the bundle.
        audio: Recording that is the timbre prompt, in place of `options.text`.

    Raises:
        SettingError: There are both a text and a recording.
    """

    source: Path | Curve
    options: GenerateOptions = field(default_factory=GenerateOptions)
    audio: Path | None = None

    def __post_init__(self) -> None:
        _ = self.prompt

    @property
    def prompt(self) -> Prompt:
        """The timbre prompt."""
        return Prompt(self.options.text, self.audio, self.options.negative_text)


@dataclass(frozen=True, eq=False)
class Sound:
    """The result of a job.

    Attributes:
        envelope: Linear RMS, float32 [frames at 100 Hz].
        takes: One take per variation.
    """

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
    """Run `job` on a server.

    Args:
        foley: The server.
        job: The job.
        watch: Progress and cancellation.
        loop: Whether the diffusion loop runs on the client or on the server.
        on_envelope: Called with the envelope before the sounds are generated.
        max_sound_s: Limit on the total duration of all variations, in seconds.

    Raises:
        MediaError: The video or the audio prompt cannot be used.
        EnvelopeError: The envelope is invalid.
        SettingError: A setting is out of range or has no effect, or the variations exceed `max_sound_s`.
    """

    def check_length(samples: int) -> None:
        seconds = job.options.variations * samples / clip.SAMPLE_RATE_HZ
        if seconds > max_sound_s:
            raise SettingError(
                f"that is {seconds:.0f} s of sound, the limit is {max_sound_s:g} s; ask for less at once"
            )

    sampling = resolve_sampling(job.options, foley.triton.manifest.sampling)
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
        flow = resolve_flow(job.options, foley.triton.stages)
        envelope, embeddings = foley.prepare(video, job.prompt, watch, flow)
        origin = {"video_sha256": content_sha256(job.source), "envelope": "predicted", "flow": flow}
    on_envelope(envelope)
    takes = foley.generate(
        envelope,
        samples,
        job.prompt,
        sampling,
        embeddings=embeddings,
        variations=job.options.variations,
        loop=loop,
        level=job.options.loudness,
        watch=watch,
    )
    return Sound(envelope, [replace(take, recipe={**origin, **take.recipe}) for take in takes])
