"""The second stage, RMS2Sound: envelope and embeddings -> sound, in windows of 10 s."""

import math
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal

import numpy as np

from foley import clip
from foley.denoising import served_denoiser
from foley.envelope import Floats
from foley.sampler import Sampling, sample
from foley.windows import OVERHANG_S, crossfade, cut, window_starts_s
from foley_pipeline.progress import Stage, StageTimer
from foley_pipeline.triton import TritonClient

Loop = Literal["client", "server"]

MAX_OVERHANG = math.ceil(OVERHANG_S * clip.ENVELOPE_RATE_HZ)  # envelope frames of a last window beyond 10 s
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
        rest = self.envelope[start:]
        length = len(rest) if len(rest) <= clip.CLIP_ENVELOPE + MAX_OVERHANG else clip.CLIP_ENVELOPE
        return replace(self, envelope=cut(rest[:length], 0, clip.PADDED_ENVELOPE))


def synthesize(
    triton: TritonClient,
    condition: Conditioning,
    samplings: Sequence[Sampling],
    samples: int,
    loop: Loop,
    timer: StageTimer,
) -> list[Floats]:
    """Generate one waveform per element of `samplings`, without setting its loudness.

    Args:
        triton: The server.
        condition: Conditioning that all sounds share.
        samplings: Settings of each sound.
        samples: Length of the sounds, in samples at 16 kHz.
        loop: Whether the diffusion loop runs on the client or on the server.
        timer: Progress and timings.

    Returns:
        Waveforms, float32 [samples] each.
    """
    starts = window_starts_s(samples / clip.SAMPLE_RATE_HZ)
    windows = [(sampling, number) for sampling in samplings for number in range(len(starts))]
    run = {"client": _in_client, "server": _in_server}[loop]
    total = sum(sampling.steps for sampling, _ in windows)
    with (
        timer.stage(Stage.DENOISE, total) as stage,
        ThreadPoolExecutor(CONCURRENT_WINDOWS) as pool,
        triton.cancel.child() as cancel,
    ):
        server = triton.under(cancel)
        jobs = [pool.submit(run, server, condition.window(starts[i]), s, i, stage.advance) for s, i in windows]
        wait(jobs, return_when=FIRST_EXCEPTION)
        failed = [job for job in jobs if job.done() and job.exception()]
        results = deque(job.result() for job in failed or jobs)
        del jobs, failed  # they hold the results, too
    with closing(_decoded(triton, results, timer) if loop == "client" else _drained(results)) as waveforms:
        return [
            crossfade(islice(waveforms, len(starts)), len(starts), clip.SAMPLE_RATE_HZ, samples, "equal_power")
            for _ in samplings
        ]


def _drained(results: deque[Floats]) -> Generator[Floats, None, None]:
    """Yield the items and remove them, so that a long sound is in memory once: as it is joined."""
    while results:
        yield results.popleft()


def _decoded(triton: TritonClient, results: deque[Floats], timer: StageTimer) -> Generator[Floats, None, None]:
    """Yield the waveform of each window's latents, and remove these."""
    batch = triton.stages["latents_to_waveform"].max_batch
    with timer.stage(Stage.DECODE, len(results)) as stage:
        while results:
            latents = np.stack([results.popleft() for _ in range(min(batch, len(results)))])
            waveforms = triton.infer("latents_to_waveform", latents=latents)["waveform"]
            stage.advance(len(latents))
            yield from waveforms


def _in_client(
    triton: TritonClient, condition: Conditioning, sampling: Sampling, window: int, advance: Callable[[], None]
) -> Floats:
    """Run the loop on the client with one call of `denoiser` per step; return the final latents."""
    denoise = served_denoiser(triton.infer, condition.envelope, condition.embedding, condition.negative_embedding)
    result = np.empty(0, np.float32)
    for latents in sample(denoise, sampling, window):
        result = latents
        advance()
    return result


def _in_server(
    triton: TritonClient, condition: Conditioning, sampling: Sampling, window: int, advance: Callable[[], None]
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
