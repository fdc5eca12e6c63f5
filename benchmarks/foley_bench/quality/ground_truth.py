"""The ground truth of the evaluation: real sounds of the scenes, captions, and the classifier of materials."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from sklearn.pipeline import Pipeline

from foley.envelope import Floats, measure
from foley.metrics import correlation, event_l1
from foley.sampler import Sampling
from foley_bench.quality import clips
from foley_bench.quality.frechet import frechet_distance
from foley_bench.quality.timbre import timbre, train_classifier
from foley_pipeline.progress import StageTimer
from foley_pipeline.prompt import embed_audio, embed_text
from foley_pipeline.rms2sound import Conditioning
from foley_pipeline.triton import TritonClient
from foley_training.data.caption import plain_caption
from foley_training.data.scene import Material, Scene

PromptKind = Literal["text", "audio"]
PROMPTS: tuple[PromptKind, ...] = get_args(PromptKind)
"""The paper's two kinds of prompt: a scene's caption, or its real sound."""


@dataclass(frozen=True)
class AudioStats:
    """Statistics of a 10 s sound."""

    envelope: Floats  # [1000] at 100 Hz
    embedding: Floats  # CLAP's, [512]
    timbre: Floats  # see `timbre.timbre`, [128]


@dataclass(frozen=True)
class GroundTruth:
    """The ground truth of several clips, in order."""

    sounds: Sequence[AudioStats]  # the real ones
    texts: Floats  # CLAP embeddings of the captions, [clips, 512]
    empty_text: Floats  # [512], of the unconditional branch of guidance
    materials: Sequence[Material]
    classifier: Pipeline  # from timbre to material, trained on other real sounds


def audio_stats(triton: TritonClient, waveform: Floats) -> AudioStats:
    """Measure a sound [160000] without any gain."""
    return AudioStats(measure(waveform), embed_audio(triton, waveform), timbre(waveform))


def measure_ground_truth(triton: TritonClient, scenes: Sequence[Scene], seed: int, timer: StageTimer) -> GroundTruth:
    """Synthesise and measure the real sounds of `scenes`; train the classifier on other scenes of run `seed`."""
    others = clips.classifier_scenes(seed)
    with timer.stage("real sounds", len(scenes) + len(others)) as stage:
        sounds, texts, timbres = [], [], []
        for scene in scenes:
            sounds.append(audio_stats(triton, clips.sound(scene)))
            texts.append(embed_text(triton, plain_caption(scene.material, scene.action)))
            stage.advance()
        for scene in others:
            timbres.append(timbre(clips.sound(scene)))
            stage.advance()
    return GroundTruth(
        sounds=sounds,
        texts=np.stack(texts),
        empty_text=embed_text(triton, ""),
        materials=[scene.material for scene in scenes],
        classifier=train_classifier(timbres, [scene.material for scene in others]),
    )


def conditions(ground_truth: GroundTruth, prompt: PromptKind) -> list[Conditioning]:
    """Return every clip's true envelope with its caption or its real sound as the prompt."""
    prompts = ground_truth.texts if prompt == "text" else [real.embedding for real in ground_truth.sounds]
    return [
        Conditioning(real.envelope, embedding, ground_truth.empty_text)
        for real, embedding in zip(ground_truth.sounds, prompts, strict=True)
    ]


def with_seeds(sampling: Sampling, count: int) -> list[Sampling]:
    """Return `sampling` for every clip; clip i has seed i."""
    return [replace(sampling, seed=i) for i in range(count)]


def scores(generated: Sequence[AudioStats], ground_truth: GroundTruth) -> dict[str, float]:
    """Return E-L1, envelope correlation, material accuracy, CLAP score and Frechet distance.

    Means over the clips. The CLAP score is the cosine of the sound's embedding and its caption's.
    """
    pairs = list(zip(generated, ground_truth.sounds, strict=True))
    embeddings = np.stack([one.embedding for one in generated])
    return {
        "event_l1": float(np.mean([event_l1(one.envelope, real.envelope) for one, real in pairs])),
        "envelope_correlation": float(np.mean([correlation(one.envelope, real.envelope) for one, real in pairs])),
        "material_accuracy": float(
            ground_truth.classifier.score([one.timbre for one in generated], ground_truth.materials)
        ),
        "clap_score": float((embeddings * ground_truth.texts).sum(1).mean()),
        "frechet_distance": frechet_distance(embeddings, np.stack([real.embedding for real in ground_truth.sounds])),
    }
