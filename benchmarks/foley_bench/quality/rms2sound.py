"""Sounds for the evaluation: RMS2Sound as it is served, and the same without its ControlNet."""

from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from foley.envelope import Floats
from foley.sampler import Sampling, Step, sample
from foley_bench.quality import clips
from foley_export.networks.denoiser import Denoiser
from foley_pipeline.cancellation import CancelToken
from foley_pipeline.progress import StageTimer
from foley_pipeline.rms2sound import CONCURRENT_WINDOWS, Conditioning, synthesize
from foley_pipeline.triton import TritonClient


def generate(
    triton: TritonClient, conditions: Sequence[Conditioning], samplings: Sequence[Sampling]
) -> Generator[Floats, None, None]:
    """Yield one raw waveform [160000] for every condition, in order; several are in flight, so that steps form batches.

    Raw: before any gain; the official evaluation scales the peak to 0.8 first. Closing the generator stops the work.
    """
    cancel = CancelToken()
    server = triton.under(cancel)

    def run(condition: Conditioning, sampling: Sampling) -> Floats:
        return synthesize(server, condition, [sampling], clips.SAMPLES, "client", StageTimer())[0]

    with ThreadPoolExecutor(CONCURRENT_WINDOWS) as pool:
        try:
            yield from pool.map(run, conditions, samplings)
        except BaseException:
            cancel.cancel()  # those in flight stop before their next step
            pool.shutdown(cancel_futures=True)
            raise


def generate_without_control(
    triton: TritonClient, denoiser: Denoiser, conditions: Sequence[Conditioning], samplings: Sequence[Sampling]
) -> Iterator[Floats]:
    """Yield the same without the ControlNet: the denoiser runs in PyTorch, VAE and vocoder are served."""
    for condition, sampling in zip(conditions, samplings, strict=True):
        latents = latents_without_control(denoiser, condition, sampling)
        yield triton.infer("latents_to_waveform", latents=latents[None])["waveform"][0, : clips.SAMPLES]


@torch.inference_mode()
def latents_without_control(denoiser: Denoiser, condition: Conditioning, sampling: Sampling) -> Floats:
    """Return the final latents [8, 256, 16] of the same loop with guidance, without the ControlNet."""
    embeddings = torch.from_numpy(np.stack([condition.embedding, condition.negative_embedding]))

    def denoise(latents: Floats, step: Step) -> Floats:
        rows = torch.from_numpy(latents).expand(2, -1, -1, -1)
        conditional, unconditional = denoiser.predict_noise(rows, torch.full((2,), step.timestep), embeddings)
        guided: Floats = (unconditional + step.guidance * (conditional - unconditional)).numpy()
        return guided

    *_, result = sample(denoise, sampling)
    return result
