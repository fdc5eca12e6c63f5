"""The second stage: envelope + embedding -> sound, window by window, the loop here or on the server."""

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from foley import clip
from foley.denoising import served_denoiser
from foley.envelope import Floats
from foley.sampler import Sampling, sample
from foley.windows import crossfade, cut, window_starts_s
from foley_pipeline.triton import Triton
from foley_pipeline.watch import Watch

Loop = Literal["client", "server"]

CONCURRENT_WINDOWS = 8  # windows whose steps are under way at once, to be merged into batches


@dataclass(frozen=True)
class Condition:
    """What steers a sound: its envelope [frames at 100 Hz] and the prompts' embeddings, [512] each."""

    envelope: Floats
    embedding: Floats
    negative_embedding: Floats

    def window(self, start_s: float) -> "Condition":
        """The clip that starts at `start_s`, its envelope padded to 1024 frames with zeros."""
        start = round(start_s * clip.ENVELOPE_RATE_HZ)
        piece = cut(self.envelope[start : start + clip.CLIP_ENVELOPE], 0, clip.PADDED_ENVELOPE)
        return replace(self, envelope=piece)


def synthesize(
    triton: Triton, condition: Condition, samplings: Sequence[Sampling], samples: int, loop: Loop, watch: Watch
) -> list[Floats]:
    """One waveform [samples at 16 kHz] for every one of `samplings`, before its loudness is set."""
    starts = window_starts_s(samples / clip.SAMPLE_RATE_HZ)
    windows = [(sampling, number) for sampling in samplings for number in range(len(starts))]
    run = {"client": _in_client, "server": _in_server}[loop]
    total = sum(sampling.steps for sampling, _ in windows)
    with watch.stage("denoising", total) as stage, ThreadPoolExecutor(CONCURRENT_WINDOWS) as pool:
        jobs = [pool.submit(run, triton, condition.window(starts[i]), s, i, stage.advance) for s, i in windows]
        try:
            wait(jobs, return_when=FIRST_EXCEPTION)
            failed = [job for job in jobs if job.done() and job.exception()]
            results = [job.result() for job in failed or jobs]
        except BaseException:
            watch.cancel()  # one failed or the user stopped: the others stop before their next step
            pool.shutdown(cancel_futures=True)
            raise
    if loop == "client":
        with watch.stage("VAE and vocoder", len(results)) as stage:
            for i, latents in enumerate(results):
                results[i] = triton.infer("latents_to_waveform", latents=latents[None])["waveform"][0]
                stage.advance()
    return [
        crossfade(results[first : first + len(starts)], clip.SAMPLE_RATE_HZ, samples, "power")
        for first in range(0, len(results), len(starts))
    ]


def _in_client(
    triton: Triton, condition: Condition, sampling: Sampling, window: int, advance: Callable[[], None]
) -> Floats:
    """The loop here: one `denoiser` call a step. The final latents."""
    denoise = served_denoiser(triton.infer, condition.envelope, condition.embedding, condition.negative_embedding)
    result = np.empty(0, np.float32)
    for latents in sample(denoise, sampling, window):
        result = latents
        advance()
    return result


def _in_server(
    triton: Triton, condition: Condition, sampling: Sampling, window: int, advance: Callable[[], None]
) -> Floats:
    """The loop on the server: one call, an event a step. The waveform."""
    events = triton.stream(
        "generate",
        envelope=condition.envelope,
        embedding=condition.embedding,
        negative_embedding=condition.negative_embedding,
        guidance=[sampling.guidance],
        seed=[sampling.seed, window],
        steps=[sampling.steps],
        sampler=[sampling.sampler.encode()],
        eta=[sampling.eta],
        spacing=[sampling.spacing.encode()],
        guidance_interval=sampling.guidance_interval,
    )
    waveform = np.empty(0, np.float32)
    with closing(events):  # type: ignore[type-var]
        for event in events:
            waveform = event["waveform"]
            advance()
    return waveform
