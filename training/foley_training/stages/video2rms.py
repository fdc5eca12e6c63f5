"""Video2RMS: features to loudness classes, as in the paper, and to linear RMS, the paper's baseline.

Lee et al., "Video-Foley" (TASLP 2025), section III-A: 64 mu-law classes, Gaussian label smoothing (W = 2),
cross-entropy. The regression minimises the squared error of the same curve.
"""

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from foley import clip, metrics
from foley.envelope import class_levels
from foley.manifest import Manifest
from foley_export.networks import video2rms_loss
from foley_export.networks.video2rms import Encoder, Video2RMS, Video2RMSRegression
from foley_training.config import LoopConfig
from foley_training.feature_rows import FeatureRows
from foley_training.loop import Losses, Pass, Task
from foley_training.videos import PAIRS

_ROTATION_STEP = 6  # frames; the smallest number that spans whole class frames: 25
_NOISE_STD = 0.3  # added noise, relative to the features' standard deviation
_REGRESSION_WEIGHT = 1_000.0  # loss weight: squared errors of linear RMS are small


@dataclass(frozen=True)
class ClipBatch:
    """Features [batch, 300, width], the last row zeros as in the official code, and the loss's target [batch, 1250]."""

    features: Tensor
    target: Tensor


class _EnvelopeTask(Task[ClipBatch]):
    """The part shared by classification and regression: data, initial weights and validation."""

    def _setup(self, encoder: Encoder, config: LoopConfig, train: FeatureRows, validation: FeatureRows) -> None:
        self.config, self.train_set, self.validation_set, self.encoder = config, train, validation, encoder
        self.deviation = train.features.astype(np.float32).std((0, 1))
        with torch.no_grad():
            # initialise the projection from video frames to class frames as linear interpolation
            encoder.get_parameter("BiLSTM_projs.0.weight").copy_(interpolation())
            encoder.get_parameter("BiLSTM_projs.0.bias").zero_()
            # a positive bias lets gradients through the final ReLU
            encoder.get_parameter("BiLSTM_projs.1.bias").fill_(0.1)

    def batch(self, random: np.random.Generator) -> ClipBatch:
        chosen = random.integers(len(self.train_set.features), size=self.config.batch)
        return self._make_batch([self._rotated(index, random) for index in chosen])

    def _rotated(self, index: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Rotate a clip to start at a random silent moment, so that every moment is trained at every position."""
        features, rms = self.train_set.features[index].astype(np.float32), self.train_set.rms[index]
        features = np.concatenate([features, features[-1:]])
        per_frame = clip.CLIP_CLASSES / clip.CLIP_FRAMES
        silent = [s for s in range(0, clip.CLIP_FRAMES, _ROTATION_STEP) if rms[round(s * per_frame)] < 0.01]
        shift = int(random.choice(silent)) if silent else 0
        features = np.roll(features, -shift, 0)[:PAIRS]
        features += _NOISE_STD * self.deviation * random.standard_normal(features.shape, np.float32)
        return features, np.roll(rms, -round(shift * per_frame))

    def _make_batch(self, clips: list[tuple[np.ndarray, np.ndarray]]) -> ClipBatch:
        features, rms = (np.stack(part) for part in zip(*clips, strict=True))
        padded = functional.pad(torch.from_numpy(features), (0, 0, 0, clip.CLIP_FRAMES - PAIRS))
        return ClipBatch(padded.to(self.device), torch.from_numpy(self._target(rms)).to(self.device))

    def validate(self) -> dict[str, float]:
        """Return E-L1, and the accuracy within two classes over frames that are not silent in both."""
        features, target = self.validation_set.features, self.validation_set.rms
        curves, classes = [], []
        for first in range(0, len(target), 16):
            rows = [
                (f.astype(np.float32), r)
                for f, r in zip(features[first : first + 16], target[first : first + 16], strict=True)
            ]
            rms, found = self._predict(self._make_batch(rows).features)
            curves.append(rms)
            classes.append(found)
        true = video2rms_loss.to_classes(target)
        return {
            "event_l1": metrics.event_l1(np.concatenate(curves), target),
            "accuracy_pm2": metrics.tolerant_accuracy(np.concatenate(classes), true, 2, skip_silence=True),
        }

    @abstractmethod
    def _target(self, rms: np.ndarray) -> np.ndarray:
        """Convert the low-passed RMS to the loss's target; both [batch, 1250]."""

    @abstractmethod
    def _predict(self, features: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Return the linear RMS and its classes, [batch, 1250] each."""


class Classification(_EnvelopeTask):
    """The paper's Video2RMS."""

    name = "video2rms"

    def __init__(self, manifest: Manifest, config: LoopConfig, train: FeatureRows, validation: FeatureRows) -> None:
        super().__init__()
        self.network = Video2RMS(manifest)
        self.classes = manifest.video2rms.classes
        self.networks = nn.ModuleDict({"network": self.network})
        self.passes = [Pass(self.networks, self.losses)]
        self._setup(self.network.encoder, config, train, validation)

    def losses(self, batch: ClipBatch) -> Losses:
        """Return the cross-entropy with smoothed classes."""
        logits = self.network.logits(batch.features).float()
        return {
            "classes": video2rms_loss.cross_entropy(logits, video2rms_loss.smooth_labels(batch.target, self.classes))
        }

    def _target(self, rms: np.ndarray) -> np.ndarray:
        return video2rms_loss.to_classes(rms, self.classes)

    def _predict(self, features: Tensor) -> tuple[np.ndarray, np.ndarray]:
        classes = self.network.logits(features).argmax(-1).cpu().numpy()
        return class_levels(self.classes)[classes], classes


class Regression(_EnvelopeTask):
    """The same encoder with one output, the linear RMS."""

    name = "video2rms_regression"

    def __init__(self, manifest: Manifest, config: LoopConfig, train: FeatureRows, validation: FeatureRows) -> None:
        super().__init__()
        self.network = Video2RMSRegression(manifest)
        self.networks = nn.ModuleDict({"network": self.network})
        self.passes = [Pass(self.networks, self.losses)]
        self._setup(self.network.encoder, config, train, validation)

    def losses(self, batch: ClipBatch) -> Losses:
        """Return the squared error of the linear RMS."""
        return {"square": _REGRESSION_WEIGHT * functional.mse_loss(self.network(batch.features).float(), batch.target)}

    def _target(self, rms: np.ndarray) -> np.ndarray:
        return rms

    def _predict(self, features: Tensor) -> tuple[np.ndarray, np.ndarray]:
        rms = self.network(features).cpu().numpy()
        return rms, video2rms_loss.to_classes(rms)


def interpolation() -> Tensor:
    """Return weights [1250, 300] that interpolate rows at (i + 1) / 30 s to values at j / 125 s.

    The last row is zero padding and has zero weights.
    """
    times = np.arange(clip.CLIP_CLASSES) / clip.CLASS_RATE_HZ
    rows = (np.arange(PAIRS) + 1) / clip.FRAME_RATE_HZ
    weights = np.stack([np.interp(times, rows, unit) for unit in np.eye(PAIRS)], 1)
    return torch.from_numpy(np.pad(weights, ((0, 0), (0, 1)))).float()
