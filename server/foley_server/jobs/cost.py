"""Cost of jobs in denoiser rows, the unit of work of the networks: one latent through one step."""

from foley import clip
from foley.errors import SettingError
from foley.manifest import SamplingDefaults
from foley.options import GenerateOptions
from foley.profiles import resolve_sampling
from foley.windows import window_starts_s
from foley_pipeline.request import GenerationRequest

ENVELOPE_ROWS, EMBEDDING_ROWS = 10, 1  # rough equivalents of work without the denoiser


def rows_per_step(options: GenerateOptions, defaults: SamplingDefaults) -> int:
    """Return the rows of one step of one window: two with classifier-free guidance, one without."""
    return 2 if resolve_sampling(options, defaults).guidance != 1 else 1


def estimate(request: GenerationRequest, defaults: SamplingDefaults, max_steps: int) -> int:
    """Return the cost of a generation before it runs; a video, whose duration is not known yet, counts as one window.

    Raises:
        SettingError: The request has more than `max_steps` steps, or options that conflict.
    """
    sampling = resolve_sampling(request.options, defaults)
    request.prompt.check(sampling.guidance)
    steps = sampling.steps
    if steps > max_steps:
        error = SettingError(f"{steps} steps are more than {max_steps}, the limit; request fewer")
        error.field = "sampling.steps"
        raise error
    seconds = request.envelope.samples / clip.SAMPLE_RATE_HZ if request.envelope else clip.CLIP_SECONDS
    windows = len(window_starts_s(seconds))
    return steps * windows * request.options.variations * rows_per_step(request.options, defaults)
