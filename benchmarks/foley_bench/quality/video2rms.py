"""Metrics of predicted envelopes, for Video2RMS and its regression baseline."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from foley.bundle import Bundle
from foley.envelope import Floats, class_levels
from foley.errors import BundleError
from foley.metrics import event_l1, tolerant_accuracy
from foley_bench.quality import clips, onsets
from foley_export.networks.video2rms import REGRESSION_WEIGHTS, Video2RMSRegression
from foley_export.networks.video2rms_loss import to_classes
from foley_pipeline.progress import StageTimer
from foley_pipeline.triton import TritonClient
from foley_pipeline.video2rms import clip_features, extract_features
from foley_training.data.scene import Scene
from foley_training.feature_rows import loudness

TOLERANCES = (2, 5, 8)  # classes


@dataclass(frozen=True)
class Curves:
    """Envelopes of several clips, linear RMS at 125 Hz, [clips, 1250] each, and their classes, int64."""

    contacts_s: list[onsets.Times]
    true: Floats
    true_classes: npt.NDArray[np.int64]
    classified: Floats
    classes: npt.NDArray[np.int64]
    regressed: Floats | None


def predict(
    triton: TritonClient, regression: Video2RMSRegression | None, scenes: Sequence[Scene], timer: StageTimer, name: str
) -> Curves:
    """Render every scene and predict its envelope with the served networks and, if present, the baseline."""
    levels = class_levels(triton.manifest.video2rms.classes)
    true, classes, regressed = [], [], []
    with timer.stage(name, len(scenes)) as stage:
        for scene in scenes:
            true.append(loudness(clips.sound(scene)))
            rows = extract_features(triton, clips.Rendered(scene), StageTimer())
            features = clip_features(rows[:-1], rows[-1])[None]
            classes.append(triton.infer("video2rms", features=features)["classes"][0])
            if regression is not None:
                with torch.inference_mode():
                    regressed.append(regression(torch.from_numpy(features))[0].numpy())
            stage.advance()
    return Curves(
        contacts_s=[clips.contacts_s(scene) for scene in scenes],
        true=np.stack(true),
        true_classes=to_classes(np.stack(true), len(levels)),
        classified=levels[np.stack(classes)],
        classes=np.stack(classes),
        regressed=np.stack(regressed) if regressed else None,
    )


def classification_scores(curves: Curves) -> dict[str, float]:
    """Return E-L1 and accuracies of the classes, over all frames of all clips."""
    return _scores(curves, curves.classified, curves.classes)


def regression_scores(curves: Curves, class_count: int) -> Mapping[str, float | None]:
    """Return the same for the baseline, whose class is that of its linear RMS; None values without a baseline."""
    if curves.regressed is None:
        return dict.fromkeys(classification_scores(curves))
    return _scores(curves, curves.regressed, to_classes(curves.regressed, class_count))


def _scores(curves: Curves, linear: Floats, classes: npt.NDArray[np.int64]) -> dict[str, float]:
    return {"event_l1": event_l1(linear, curves.true)} | {
        f"accuracy_pm{tolerance}": tolerant_accuracy(classes, curves.true_classes, tolerance, skip_silence=True)
        for tolerance in TOLERANCES
    }


def onset_scores(curves: Curves, envelopes: Floats) -> dict[str, float]:
    """Return `onsets.scores` of the onsets detected in `envelopes` [clips, 1250]."""
    return onsets.scores([onsets.detect(envelope) for envelope in envelopes], curves.contacts_s)


def load_regression(bundle: Bundle) -> Video2RMSRegression | None:
    """Return the regression baseline of a bundle, or None if it has none, as the published weights.

    Raises:
        BundleError: If the weights are damaged or belong to another network.
    """
    path = bundle.path(REGRESSION_WEIGHTS)
    if not path.exists():
        return None
    network = Video2RMSRegression(bundle.manifest)
    try:
        network.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise BundleError(
            f"{path} does not contain the regression baseline of this bundle's Video2RMS; delete it"
        ) from error
    return network.eval()
