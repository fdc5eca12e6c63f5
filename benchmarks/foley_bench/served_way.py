"""The stages of this way, called one by one on a Triton server, each as pieces of work as in `official.way`."""

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import numpy.typing as npt

from foley import loudness
from foley.clip import CHUNK_PAIRS
from foley.denoising import served_denoiser
from foley.media import read_frames
from foley.sampler import Sampling, sample
from foley_bench.material import TEXTS, Images, Material
from foley_client import Triton
from foley_pipeline.prompt import embed_text

Work = Callable[[], Iterator[int]]


def works(triton: Triton, material: Material, samplings: Mapping[str, Sampling]) -> Mapping[str, Work]:
    """The work of every stage; that of the denoiser once for each of `samplings`, under their names."""

    def call(stage: str, **inputs: npt.ArrayLike) -> Work:
        def work() -> Iterator[int]:
            triton.infer(stage, **inputs)
            yield 1

        return work

    def flow(stage: str) -> Work:
        def work() -> Iterator[int]:
            for frames in _chunks(material.frames):
                triton.infer(stage, frames=frames)
                yield len(frames) - 1

        return work

    def denoise(sampling: Sampling) -> Work:
        def work() -> Iterator[int]:
            conditions = (material.envelope, material.embedding, material.negative_embedding)
            for _latents in sample(served_denoiser(triton.infer, *conditions), sampling):
                yield 1

        return work

    def decode() -> Iterator[int]:
        for _frame in read_frames(material.video):
            yield 1

    def flow_features() -> Iterator[int]:
        for start in range(0, len(material.flow), CHUNK_PAIRS):
            chunk = material.flow[start : start + CHUNK_PAIRS]
            triton.infer("flow_features", flow=chunk)
            yield len(chunk)

    def clap_text() -> Iterator[int]:
        for text in TEXTS:
            embed_text(triton, text)
            yield 1

    def set_loudness() -> Iterator[int]:
        loudness.apply(material.waveform, material.envelope, "level")
        yield 1

    return {
        "decode": decode,
        **{stage: flow(stage) for stage in triton.stages if stage.startswith("optical_flow")},
        "rgb_features": flow("rgb_features"),
        "flow_features": flow_features,
        "video2rms": call("video2rms", features=material.features),
        "clap_text": clap_text,
        **{name: denoise(sampling) for name, sampling in samplings.items()},
        "vae_decoder": call("vae_decoder", latents=material.latents[None]),
        "vocoder": call("vocoder", mel=material.mel[None]),
        "loudness": set_loudness,
    }


def _chunks(frames: Images) -> Iterator[Images]:
    """As the client sends them: the first frame of each is the last of the one before; the very last one twice."""
    still = np.concatenate([frames, frames[-1:]])
    for start in range(0, len(frames), CHUNK_PAIRS):
        yield still[start : start + CHUNK_PAIRS + 1]
