"""Evaluation metrics against reference implementations and closed forms, and separation from training data."""

from dataclasses import replace

import mir_eval
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors.torch import save_file
from scipy import linalg
from sklearn.metrics import average_precision_score

from foley import clip, envelope, metrics
from foley.bundle import Bundle
from foley.errors import BundleError
from foley.sampler import Sampling, sample
from foley_bench.quality import clips, figures, onsets, video2rms
from foley_bench.quality.frechet import frechet_distance
from foley_bench.quality.onsets import Onsets
from foley_bench.quality.report import targets
from foley_bench.quality.rms2sound import latents_without_control
from foley_bench.quality.timbre import spectrogram_db, timbre, train_classifier
from foley_export.networks.denoiser import Denoiser
from foley_export.networks.unet import ControlNet
from foley_export.networks.video2rms import REGRESSION_WEIGHTS, Video2RMSRegression
from foley_export.networks.video2rms_loss import to_classes
from foley_export.presets import TINY
from foley_export.weights import fill
from foley_pipeline.rms2sound import Conditioning
from foley_training.data.scene import HELD_OUT_STYLE, MATERIALS
from foley_training.feature_rows import loudness

CLASSES = arrays(np.int64, 40, elements=st.integers(0, 5))
CURVES = arrays(np.float64, 30, elements=st.floats(0, 1, width=32))


@given(predicted=CLASSES, true=CLASSES, tolerance=st.integers(0, 5))
def test_accuracy_without_silence(predicted, true, tolerance):
    counted = [(p, t) for p, t in zip(predicted, true, strict=True) if p or t]
    right = [abs(p - t) <= tolerance for p, t in counted]
    expected = sum(right) / len(right) if right else 1.0
    assert metrics.tolerant_accuracy(predicted, true, tolerance, skip_silence=True) == pytest.approx(expected)


@given(one=CURVES, other=CURVES)
def test_correlation_matches_pearson(one, other):
    found = metrics.correlation(one, other)
    assert -1 - 1e-9 <= found <= 1 + 1e-9
    if one.std() > 1e-3 and other.std() > 1e-3:
        assert found == pytest.approx(np.corrcoef(one, other)[0, 1], abs=1e-6)


def test_correlation_with_constant_is_zero():
    assert metrics.correlation(np.zeros(5), np.arange(5)) == 0


# --- Frechet distance


def test_frechet_distance_matches_matrix_square_root():
    random = np.random.default_rng(0)
    a = random.standard_normal((50, 6)) @ random.standard_normal((6, 6))
    b = random.standard_normal((40, 6)) @ random.standard_normal((6, 6)) + 1
    one, other = np.cov(a.T), np.cov(b.T)
    root = linalg.sqrtm(one @ other).real
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(one + other - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected)
    assert frechet_distance(b, a) == pytest.approx(expected)


@pytest.mark.parametrize("width", [3, 512])  # fewer and more dimensions than clips
def test_frechet_distance_of_shifted_and_scaled_sets(width):
    a = np.random.default_rng(1).standard_normal((20, width))
    step = np.linspace(0, 1, width)
    spread = np.square(a - a.mean(0)).sum() / 19
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, a + step) == pytest.approx(np.square(step).sum())
    assert frechet_distance(a - a.mean(0), 3 * (a - a.mean(0))) == pytest.approx(4 * spread)


# --- onsets


def test_onsets_match_contacts():
    """With true classes of clips not used to tune the detector; the ceiling of the evaluation."""
    scenes = clips.scenes("validation", 40, seed=8)
    levels = envelope.class_levels()
    found = [onsets.detect(levels[to_classes(loudness(clips.sound(scene)))]) for scene in scenes]
    scores = onsets.scores(found, [clips.contacts_s(scene) for scene in scenes])
    assert scores["f1_50ms"] > 0.88
    assert scores["accuracy"] > 0.8  # soft hits during decay and slow scratches cause no rise


def test_hit_is_one_onset_at_its_time():
    level = np.zeros(clip.CLIP_CLASSES, np.float32)
    level[500:] = 0.2 * np.exp(-np.arange(clip.CLIP_CLASSES - 500) / 15)
    found = onsets.detect(level)
    assert len(found.times_s) == 1
    assert found.times_s[0] == pytest.approx(500 / clip.CLASS_RATE_HZ, abs=0.025)
    assert not len(onsets.detect(np.full(clip.CLIP_CLASSES, 0.1, np.float32)).times_s)


@settings(deadline=None)
@given(level=arrays(np.float32, clip.CLIP_CLASSES, elements=st.floats(0, 1, width=32)))
def test_onsets_are_ordered_and_above_threshold(level):
    found = onsets.detect(level)
    assert (found.confidences >= onsets.THRESHOLD).all()
    assert (np.diff(found.times_s) >= 0).all()


TIMES = st.lists(st.floats(0, 10), min_size=1, max_size=12).map(lambda times: np.sort(times))


@given(detected=TIMES, true=TIMES)
def test_f1_matches_mir_eval(detected, true):
    found = Onsets(detected, np.linspace(3, 4, len(detected)))
    expected, *_ = mir_eval.onset.f_measure(true, detected, window=0.05)
    assert onsets.scores([found], [true])["f1_50ms"] == pytest.approx(expected)


@given(true=TIMES.filter(lambda times: (np.diff(times) > 0.2).all()))
def test_complete_detection_scores_1(true):
    found = Onsets(true + 0.02, np.linspace(3, 4, len(true)))
    assert onsets.scores([found], [true]) == pytest.approx({"accuracy": 1, "ap": 1, "f1_50ms": 1})


def test_accuracy_and_average_precision_follow_definition():
    # the onset at 1 s matches the more confident detection; that at 5 s is missed; 8 s is a false alarm
    found = Onsets(np.array([0.95, 1.04, 8.0]), np.array([3.0, 5.0, 4.0]))
    scores = onsets.scores([found], [np.array([1.0, 5.0])])
    assert scores["accuracy"] == 0.5
    assert scores["ap"] == pytest.approx(average_precision_score([0, 1, 0, 1], [3, 5, 4, 0]))
    assert scores["f1_50ms"] == pytest.approx(2 * 1 / 5)


def test_accuracy_averages_clips_and_f1_averages_contacts():
    perfect = Onsets(np.array([1.0]), np.array([3.0]))
    nothing = Onsets(np.empty(0), np.empty(0))
    scores = onsets.scores([perfect, nothing], [np.array([1.0]), np.array([1.0, 2.0, 3.0])])
    assert scores["accuracy"] == 0.5
    assert scores["f1_50ms"] == pytest.approx(2 * 1 / 5)


# --- clips


def test_evaluation_and_training_clips_are_disjoint():
    evaluated = [*clips.scenes("test", 100, 0), *clips.scenes("test-night", 100, 0)]
    training_scenes = clips.classifier_scenes(0)
    trained = [*clips.scenes("train", 100, 0), *clips.scenes("validation", 100, 0)]
    seeds = [{scene.seed for scene in group} for group in (evaluated, training_scenes, trained)]
    assert len(set.union(*seeds)) == sum(map(len, seeds))
    assert {scene.style for scene in evaluated[100:]} == {HELD_OUT_STYLE}
    assert HELD_OUT_STYLE not in {scene.style for scene in (*evaluated[:100], *trained)}


def test_rendered_scene_yields_frames():
    frames = clips.Rendered(clips.scenes("test", 1, 0)[0])
    assert sum(frame.shape == (clip.FRAME_HEIGHT, clip.FRAME_WIDTH, 3) for frame in frames) == len(frames)


def test_materials_are_classified_at_any_level():
    training_scenes = clips.classifier_scenes(0)[:120]
    classifier = train_classifier(
        [timbre(clips.sound(scene)) for scene in training_scenes], [scene.material for scene in training_scenes]
    )
    scenes = clips.scenes("test", 40, 0)
    sounds = [clips.sound(scene) for scene in scenes]
    for gain in (1.0, 0.1):
        timbres = [timbre(gain * sound) for sound in sounds]
        assert classifier.score(timbres, [scene.material for scene in scenes]) > 0.9
    assert set(classifier.classes_) == set(MATERIALS)


def test_timbre_of_silence_is_finite():
    silence = np.zeros(clips.SAMPLES, np.float32)
    assert np.isfinite(timbre(silence)).all()
    assert np.isfinite(spectrogram_db(silence)).all()


# --- networks that are not served


def test_without_control_matches_zero_control_net():
    denoiser = fill(Denoiser(TINY))
    random = np.random.default_rng(3)
    condition = Conditioning(
        random.random(clip.PADDED_ENVELOPE, np.float32),
        random.standard_normal(clip.EMBEDDING_DIM, np.float32),
        random.standard_normal(clip.EMBEDDING_DIM, np.float32),
    )
    sampling = Sampling(steps=3, guidance=2.5, seed=4)
    denoiser.control_net = ControlNet(TINY.denoiser).eval()  # untrained: its last convolutions are zero

    @torch.inference_mode()
    def denoise(latents, step):
        rows = (latents, condition.envelope, condition.embedding, condition.negative_embedding)
        batch = [torch.from_numpy(row)[None] for row in rows]
        guidance = torch.tensor([[sampling.guidance]])
        return denoiser(batch[0], torch.tensor([[step.timestep]]), *batch[1:], guidance)[0].numpy()

    *_, expected = sample(denoise, sampling)
    np.testing.assert_allclose(latents_without_control(denoiser, condition, sampling), expected, atol=1e-4)


def test_regression_baseline_is_loaded_and_predicts_rms(tmp_path):
    bundle = Bundle(tmp_path, TINY)
    assert video2rms.load_regression(bundle) is None
    torch.manual_seed(0)
    network = Video2RMSRegression(TINY).eval()
    path = tmp_path / REGRESSION_WEIGHTS
    path.parent.mkdir()
    save_file(network.state_dict(), path)
    loaded = video2rms.load_regression(bundle)
    features = torch.randn(2, clip.CLIP_FRAMES, TINY.features_width)
    rms = loaded(features)
    assert rms.shape == (2, clip.CLIP_CLASSES)
    assert (rms >= 0).all()
    torch.testing.assert_close(rms, network(features))
    save_file({"encoder.nothing": torch.zeros(1)}, path)
    with pytest.raises(BundleError, match="regression"):
        video2rms.load_regression(bundle)


def test_perfect_prediction_has_perfect_scores():
    levels = envelope.class_levels()
    classes = np.random.default_rng(0).integers(0, 63, (2, clip.CLIP_CLASSES))
    true = levels[classes]  # the upper edge of a class is the lower edge of the next
    curves = video2rms.Curves([np.array([1.0])] * 2, true, classes, true, classes, true)
    perfect = {"event_l1": 0, "accuracy_pm2": 1, "accuracy_pm5": 1, "accuracy_pm8": 1}
    assert video2rms.classification_scores(curves) == perfect
    assert video2rms.regression_scores(curves, 64) == perfect
    without = replace(curves, regressed=None)
    assert video2rms.regression_scores(without, 64) == dict.fromkeys(perfect)


# --- report and figures


def document(regression: float | None) -> dict:
    columns = ("event_l1", "accuracy_pm2", "accuracy_pm5", "accuracy_pm8")
    sound = {"event_l1": 0.01, "event_l1_without_control": 0.05, "envelope_correlation": 0.95, "material_accuracy": 0.7}
    return {
        "video2rms": {
            "classification": dict.fromkeys(columns, 0.5),
            "regression": dict.fromkeys(columns, regression),
            "onset": {"f1_50ms": 0.9, "f1_50ms_heldout_style": 0.7},
        },
        "rms2sound": {"text": sound, "audio": sound},
    }


def test_targets_report_met_and_missed():
    results = {target.what: target.met for target in targets(document(0.4))}
    assert [results[f"classification {column}"] for column in ("event_l1", "accuracy_pm2")] == [False, True]
    assert results["onset F1 ±50 ms"]
    assert not results["onset F1 ±50 ms, held-out style"]
    assert results["text: E-L1 with / without control"]
    assert results["audio: envelope correlation"]
    assert not results["audio: material recognised"]
    assert len(results) == 12
    assert len(list(targets(document(None)))) == 8


def test_figure_11_curves_match_their_names():
    shapes = {name: envelope.validate(curve, 500) for name, curve in figures.shapes().items()}
    np.testing.assert_allclose(shapes["A shape"][1:], shapes["A shape"][:0:-1], atol=1e-6)
    np.testing.assert_allclose(shapes["rising"][1:], shapes["falling"][:0:-1], atol=1e-6)
    assert shapes["A shape"].argmax() == shapes["V shape"][30:-30].argmin() + 30 == 250
    assert envelope.validate(figures.hits(), 500).max() == pytest.approx(0.15, abs=1e-3)
