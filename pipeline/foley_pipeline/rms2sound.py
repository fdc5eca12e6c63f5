"""The second stage, RMS2Sound: envelope and embeddings -> sound, in windows of 10 s."""

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

CONCURRENT_WINDOWS = 8  # windows that are denoised concurrently, so that the server batches their steps


@dataclass(frozen=True)
class Conditioning:
    """Conditioning of a sound.

    Attributes:
        envelope: Linear RMS, float32 [frames at 100 Hz].
        embedding: CLAP embedding of the prompt, float32 [512].
        negative_embedding: CLAP embedding of the negative prompt, float32 [512].
    """

    envelope: Floats
    embedding: Floats
    negative_embedding: Floats

    def window(self, start_s: float) -> "Conditioning":
        """Return the conditioning of the clip that starts at `start_s`, its envelope zero-padded to 1024 frames."""
        start = round(start_s * clip.ENVELOPE_RATE_HZ)
        piece = cut(self.envelope[start : start + clip.CLIP_ENVELOPE], 0, clip.PADDED_ENVELOPE)
        return replace(self, envelope=piece)


def synthesize(
    triton: Triton, condition: Conditioning, samplings: Sequence[Sampling], samples: int, loop: Loop, watch: Watch
) -> list[Floats]:
    """Generate one waveform per element of `samplings`, without setting its loudness.

    Args:
        triton: The server.
        condition: Conditioning that all sounds share.
        samplings: Settings of each sound.
        samples: Length of the sounds, in samples at 16 kHz.
        loop: Whether the diffusion loop runs on the client or on the server.
        watch: Progress and cancellation.

    Returns:
        Waveforms, float32 [samples] each.
    """
    starts = window_starts_s(samples / clip.SAMPLE_RATE_HZ)
    windows = [(sampling, number) for sampling in samplings for number in range(len(starts))]
    run = {"client": _in_client, "server": _in_server}[loop]
    total = sum(sampling.steps for sampling, _ in windows)
    with (
        watch.stage("denoising", total) as stage,
        ThreadPoolExecutor(CONCURRENT_WINDOWS) as pool,
        watch.part() as part,
    ):
        server = triton.under(part)
        jobs = [pool.submit(run, server, condition.window(starts[i]), s, i, stage.advance) for s, i in windows]
        wait(jobs, return_when=FIRST_EXCEPTION)
        failed = [job for job in jobs if job.done() and job.exception()]
        results = [job.result() for job in failed or jobs]
    if loop == "client":
        with watch.stage("VAE and vocoder", len(results)) as stage:
            for i, latents in enumerate(results):
                results[i] = triton.under(watch).infer("latents_to_waveform", latents=latents[None])["waveform"][0]
                stage.advance()
    return [
        crossfade(results[first : first + len(starts)], clip.SAMPLE_RATE_HZ, samples, "equal_power")
        for first in range(0, len(results), len(starts))
    ]


def _in_client(
    triton: Triton, condition: Conditioning, sampling: Sampling, window: int, advance: Callable[[], None]
) -> Floats:
    """Run the loop on the client with one call of `denoiser` per step; return the final latents."""
    denoise = served_denoiser(triton.infer, condition.envelope, condition.embedding, condition.negative_embedding)
    result = np.empty(0, np.float32)
    for latents in sample(denoise, sampling, window):
        result = latents
        advance()
    return result


def _in_server(
    triton: Triton, condition: Conditioning, sampling: Sampling, window: int, advance: Callable[[], None]
) -> Floats:
    """Run the loop on the server with one call that streams an event per step; return the waveform."""
    events = triton.stream(
        "generate",
        envelope=condition.envelope,
        embedding=condition.embedding,
        negative_embedding=condition.negative_embedding,
        options=[sampling.encode(window)],
    )
    waveform = np.empty(0, np.float32)
    with closing(events):  # type: ignore[type-var]
        for event in events:
            waveform = event["waveform"]
            advance()
    return waveform
