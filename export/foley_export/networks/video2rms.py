"""Video2RMS: video features to the loudness envelope of the sound."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from foley import clip
from foley.envelope import class_levels
from foley.manifest import Manifest, Video2RMSConfig
from foley_export.networks.network import Network

REGRESSION_WEIGHTS = "baselines/video2rms_regression.safetensors"
"""Path of the baseline's weights inside a bundle."""


class Video2RMS(Network):
    """Features [B, 300, F] -> envelope [B, 1024] (linear RMS) and its mu-law classes int64 [B, 1250].

    Lee et al., "Video-Foley" (TASLP 2025), section III. As in the official implementation, the quietest class means
    silence, and the 0.24 s of padding at the clip's end are silent.
    """

    stage_name = "video2rms"
    full_precision = frozenset({"encoder"})  # rounding can change the argmax; little compute is saved
    levels: Tensor
    nearest: Tensor

    def __init__(self, manifest: Manifest) -> None:
        super().__init__(manifest)
        self.encoder = Encoder(manifest.video2rms, manifest.features_width)
        nearest = np.arange(clip.CLIP_ENVELOPE) * clip.CLIP_CLASSES // clip.CLIP_ENVELOPE
        self.register_buffer("levels", torch.from_numpy(class_levels(manifest.video2rms.classes)), persistent=False)
        self.register_buffer("nearest", torch.from_numpy(nearest), persistent=False)

    @staticmethod
    def checkpoint_key(key: str) -> str:
        """Return `key`, which is also the official checkpoint's."""
        return key

    def logits(self, features: Tensor) -> Tensor:
        """Return the non-negative logits of the loudness classes, [B, 1250, classes]."""
        return functional.relu(self.encoder(features))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the envelope [B, 1024] and the classes [B, 1250]."""
        # logits are non-negative: if all are zero, argmax returns class 0, silence
        classes = self.logits(features).argmax(-1)
        loudness = self.levels[classes.index_select(1, self.nearest)]
        return functional.pad(loudness, (0, clip.PADDED_ENVELOPE - clip.CLIP_ENVELOPE)), classes


class Video2RMSRegression(nn.Module):
    """Features [B, 300, F] -> linear RMS [B, 1250]: the paper's L2 baseline, the same encoder with one output.

    Used for comparison only, never served: it has no stage and no graph. A bundle may hold its weights, at
    `REGRESSION_WEIGHTS`.
    """

    def __init__(self, manifest: Manifest) -> None:
        super().__init__()
        config = manifest.video2rms.model_copy(update={"classes": 1})
        self.encoder = Encoder(config, manifest.features_width)

    def forward(self, features: Tensor) -> Tensor:
        """Return the linear RMS [B, 1250]."""
        return functional.relu(self.encoder(features))[..., 0]


class Encoder(nn.Module):
    """Features [B, 300, F] -> class scores [B, 1250, classes], with the official attribute names."""

    def __init__(self, config: Video2RMSConfig, width: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Sequential(Convolution(width, config.kernel), nn.BatchNorm1d(width)) for _ in range(config.convolutions)
        )
        self.BiLSTM = nn.LSTM(width, config.lstm_width, config.lstm_layers, batch_first=True, bidirectional=True)
        self.BiLSTM_projs = nn.ModuleList(
            [nn.Linear(clip.CLIP_FRAMES, clip.CLIP_CLASSES), nn.Linear(2 * config.lstm_width, config.classes)]
        )

    def forward(self, features: Tensor) -> Tensor:
        """Return the class scores [B, 1250, classes]."""
        x = features.transpose(1, 2)
        for block in self.convolutions:
            x = functional.relu(block(x))
        x, _ = self.BiLSTM(x.transpose(1, 2))
        along_time, along_features = self.BiLSTM_projs
        return along_features(along_time(x.transpose(1, 2)).transpose(1, 2))


class Convolution(nn.Module):
    """A length-preserving Conv1d named `conv`, as nested in the official checkpoint."""

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(width, width, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` convolved along its last axis, [B, width, frames]."""
        return self.conv(x)
