"""One clip as every stage is given it: each stage is timed by itself, on inputs of the right kind."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from foley import clip
from foley.bundle import TOKENIZER, Bundle
from foley.dis_flow import DisFlow
from foley.envelope import Floats
from foley.manifest import DisFlowConfig
from foley.media import read_frames
from foley.sampler import LATENTS_SHAPE

Images = npt.NDArray[np.uint8]

TEXTS = ("a stick hits metal", "")  # the prompt, and what the sound should not be


@dataclass(frozen=True)
class Material:
    """Inputs of every stage. Pictures are a video's, since JPEG and DIS do more work where there is more to see.

    What networks read beside them is random: their time does not depend on it.
    """

    video: Path
    frames: Images  # [300, 256, 344, 3]
    flow: Images  # [299, 256, 344, 2]
    features: Floats  # [1, 300, width]
    tokens: Sequence[Sequence[int]]  # of `TEXTS`
    envelope: Floats  # [1024]
    embedding: Floats  # [512]
    negative_embedding: Floats  # [512]
    latents: Floats  # [8, 256, 16]
    mel: Floats  # [1024, 64]
    waveform: Floats  # [160000]


def collect(bundle: Bundle, video: Path) -> Material:
    """The material of one clip for the networks of `bundle`, from a `video` of 10 s."""
    tokenizer = Tokenizer.from_file(str(bundle.path(TOKENIZER)))
    random = np.random.default_rng(0)
    frames = np.stack(list(read_frames(video)))

    def normal(*shape: int) -> Floats:
        return random.standard_normal(shape, np.float32)

    return Material(
        video=video,
        frames=frames,
        flow=DisFlow(DisFlowConfig()).flow(frames),
        features=normal(1, clip.CLIP_FRAMES, bundle.manifest.features_width),
        tokens=[tokenizer.encode(text).ids for text in TEXTS],
        envelope=random.random(clip.PADDED_ENVELOPE, np.float32),
        embedding=normal(clip.EMBEDDING),
        negative_embedding=normal(clip.EMBEDDING),
        latents=normal(*LATENTS_SHAPE),
        mel=normal(clip.PADDED_ENVELOPE, clip.MEL_BINS),
        waveform=0.1 * normal(int(clip.CLIP_SECONDS) * clip.SAMPLE_RATE_HZ),
    )
