"""`foley-bench quality`: evaluates both stages of a bundle on the same clips."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from foley import __version__, loudness
from foley.bundle import Bundle
from foley.envelope import Floats, class_levels, measure
from foley.metrics import event_l1
from foley.sampler import Sampling
from foley_bench.quality import clips, onsets, video2rms
from foley_bench.quality.frechet import frechet_distance
from foley_bench.quality.ground_truth import (
    PROMPTS,
    AudioStats,
    GroundTruth,
    PromptKind,
    audio_stats,
    conditions,
    measure_ground_truth,
    scores,
    with_seeds,
)
from foley_bench.quality.rms2sound import generate, generate_without_control
from foley_client.embedded import embedded_triton
from foley_export.make import load_network
from foley_export.networks.denoiser import Denoiser
from foley_pipeline.progress import StageTimer
from foley_pipeline.prompt import embed_audio
from foley_pipeline.rms2sound import Conditioning
from foley_pipeline.triton import TritonClient
from foley_pipeline.triton_backend import TritonBackend
from foley_training.data.scene import HELD_OUT_STYLE


@dataclass(frozen=True)
class Evaluation:
    """The results of an evaluation and the data of its plots."""

    figures: dict[str, Any]  # the JSON document, see `docs/quality.md`
    curves: video2rms.Curves
    ground_truth: GroundTruth
    generated: Mapping[PromptKind, Sequence[AudioStats]]


def evaluate(bundle: Bundle, count: int, seed: int, timer: StageTimer) -> Evaluation:
    """Measure `bundle` on `count` clips of the test split and as many of the held-out style, both of run `seed`.

    Raises:
        BundleError: If the bundle is damaged or has no graphs.
        ServerUnavailable: If the embedded Triton cannot start.
    """
    regression = video2rms.load_regression(bundle)
    denoiser = load_network(bundle, "denoiser")
    assert isinstance(denoiser, Denoiser)
    scenes, held_out_scenes = clips.scenes("test", count, seed), clips.scenes("test-night", count, seed)
    with embedded_triton(bundle.root) as triton:
        curves = video2rms.predict(triton, regression, scenes, timer, "video to envelope")
        held_out = video2rms.predict(triton, regression, held_out_scenes, timer, f"video to envelope, {HELD_OUT_STYLE}")
        ground_truth = measure_ground_truth(triton, scenes, seed, timer)
        sampling = TritonBackend(triton).defaults
        samplings = with_seeds(sampling, count)
        generated: dict[PromptKind, Sequence[AudioStats]] = {}
        sound_figures: dict[str, dict[str, float]] = {}
        for prompt in PROMPTS:
            conditionings = conditions(ground_truth, prompt)
            generated[prompt], level_l1 = _with_control(triton, conditionings, samplings, timer, prompt)
            sound_figures[prompt] = scores(generated[prompt], ground_truth) | {
                "event_l1_without_control": _without_control(triton, denoiser, conditionings, samplings, timer),
                "event_l1_level": level_l1,
            }
        sound_figures["real"] = scores(ground_truth.sounds, ground_truth) | {
            "frechet_distance": _between_real(triton, ground_truth, seed, timer)
        }
        versions = {"foley": __version__, **triton.versions}
    figures = {
        "clips": count,
        "seed": seed,
        "contacts": sum(map(len, curves.contacts_s)),
        "onset_threshold": onsets.THRESHOLD,
        "sampling": {name: value for name, value in asdict(sampling).items() if name != "seed"},
        "versions": versions,
        "video2rms": _video2rms_figures(curves, held_out, bundle.manifest.video2rms.classes),
        "rms2sound": sound_figures,
    }
    return Evaluation(figures, curves, ground_truth, generated)


def _video2rms_figures(curves: video2rms.Curves, held_out: video2rms.Curves, classes: int) -> dict[str, Any]:
    onset = video2rms.onset_scores(curves, curves.classified)
    held_out_onset = video2rms.onset_scores(held_out, held_out.classified)
    return {
        "classification": video2rms.classification_scores(curves),
        "regression": video2rms.regression_scores(curves, classes),
        "classification_heldout_style": video2rms.classification_scores(held_out),
        "onset": onset | {f"{name}_heldout_style": value for name, value in held_out_onset.items()},
        "onset_of_true_classes": video2rms.onset_scores(curves, class_levels(classes)[curves.true_classes]),
    }


def _with_control(
    triton: TritonClient,
    conditionings: Sequence[Conditioning],
    samplings: Sequence[Sampling],
    timer: StageTimer,
    prompt: PromptKind,
) -> tuple[list[AudioStats], float]:
    """Return the statistics of the served sounds and their E-L1 at the default loudness."""
    sounds, level_l1 = [], []
    generated = generate(triton, conditionings, samplings)
    with timer.stage(f"sound from {prompt}", len(conditionings)) as stage, closing(generated):
        for condition, waveform in zip(conditionings, generated, strict=True):
            sounds.append(audio_stats(triton, waveform))
            level_l1.append(_event_l1(loudness.apply(waveform, condition.envelope, "level"), condition))
            stage.advance()
    return sounds, float(np.mean(level_l1))


def _without_control(
    triton: TritonClient,
    denoiser: Denoiser,
    conditionings: Sequence[Conditioning],
    samplings: Sequence[Sampling],
    timer: StageTimer,
) -> float:
    """Return E-L1 without the ControlNet."""
    l1 = []
    with timer.stage("sound without control", len(conditionings)) as stage:
        free = generate_without_control(triton, denoiser, conditionings, samplings)
        for condition, waveform in zip(conditionings, free, strict=True):
            l1.append(_event_l1(waveform, condition))
            stage.advance()
    return float(np.mean(l1))


def _event_l1(waveform: Floats, condition: Conditioning) -> float:
    return event_l1(measure(waveform), condition.envelope)


def _between_real(triton: TritonClient, ground_truth: GroundTruth, seed: int, timer: StageTimer) -> float:
    """Return the Frechet distance to equally many other real sounds: the value of a perfect generator."""
    others = clips.classifier_scenes(seed)[: len(ground_truth.sounds)]
    with timer.stage("other real sounds", len(others)) as stage:
        embeddings = []
        for scene in others:
            embeddings.append(embed_audio(triton, clips.sound(scene)))
            stage.advance()
    return frechet_distance(np.stack(embeddings), np.stack([real.embedding for real in ground_truth.sounds]))
