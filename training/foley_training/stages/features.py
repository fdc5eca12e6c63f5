"""The feature networks: BN-Inception at an eighth of its width, one for frames and one for optical flow.

The official ones are pretrained on ImageNet. These learn to predict from single pairs of frames: the material, the
loudness around that time, and the proximity of the last and the next contact. Afterwards they are frozen, like the
official ones.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from foley_export.networks.bn_inception import BNInception, FlowFeatures, RgbFeatures
from foley_training.config import LoopConfig
from foley_training.data.scene import MATERIALS
from foley_training.loop import Losses, Pass, Task
from foley_training.videos import DYNAMICS, Pairs

_DYNAMICS_WEIGHT = 20.0  # weight of the squared error relative to the material's cross-entropy


@dataclass(frozen=True)
class LabelledBatch:
    """BN-Inception's input [batch, channels, 224, 224], material [batch] and dynamics [batch, 9]."""

    images: Tensor
    material: Tensor
    dynamics: Tensor


class Features(Task[LabelledBatch]):
    """A feature network with a linear head, which is discarded after training."""

    mean: Tensor

    def __init__(
        self, network: RgbFeatures | FlowFeatures, config: LoopConfig, train: Pairs, validation: Pairs
    ) -> None:
        super().__init__()
        self.name = network.stage_name
        self.config, self.train_set, self.validation_set = config, train, validation
        self.is_rgb = isinstance(network, RgbFeatures)
        self.register_buffer("mean", network.mean if isinstance(network, RgbFeatures) else torch.tensor(128.0))
        backbone: BNInception = network.network
        width = next(size for size in network.stage.outputs[0].shape if isinstance(size, int))
        self.networks = nn.ModuleDict({"network": backbone, "head": nn.Linear(width, len(MATERIALS) + DYNAMICS)})
        self.passes = [Pass(self.networks, self.losses)]

    def batch(self, random: np.random.Generator) -> LabelledBatch:
        """Return random pairs; half of the batches are mirrored."""
        rows = np.sort(random.integers(len(self.train_set.material), size=self.config.batch))
        return self._make_batch(self.train_set, rows, mirror=bool(random.integers(2)))

    def _make_batch(self, source: Pairs, rows: np.ndarray, mirror: bool = False) -> LabelledBatch:
        images = torch.from_numpy((source.rgb if self.is_rgb else source.flow)[rows]).to(self.device).float()
        images = (images.flip(-1) if self.is_rgb else images).permute(0, 3, 1, 2) - self.mean
        if mirror:
            images = images.flip(3)
            if not self.is_rgb:
                images[:, 0] *= -1
        material, dynamics = (torch.from_numpy(a[rows]).to(self.device) for a in (source.material, source.dynamics))
        return LabelledBatch(images, material, dynamics)

    def losses(self, batch: LabelledBatch) -> Losses:
        """Return the cross-entropy of the material and the squared error of the dynamics."""
        materials, dynamics = self._predict(batch.images)
        return {
            "material": functional.cross_entropy(materials, batch.material),
            "dynamics": _DYNAMICS_WEIGHT * functional.mse_loss(dynamics, batch.dynamics),
        }

    def _predict(self, images: Tensor) -> tuple[Tensor, Tensor]:
        outputs = self.networks["head"](self.networks["network"](images)).float()
        materials, dynamics = outputs.split([len(MATERIALS), DYNAMICS], 1)
        return materials, dynamics

    def validate(self) -> dict[str, float]:
        """Return the accuracy of the material and the explained variance of the dynamics."""
        correct, error, targets = [], [], []
        for rows in np.array_split(np.arange(0, len(self.validation_set.material), 4), 20):
            batch = self._make_batch(self.validation_set, rows)
            materials, dynamics = self._predict(batch.images)
            correct.append(float((materials.argmax(1) == batch.material).float().mean()))
            error.append(float((dynamics - batch.dynamics).square().mean()))
            targets.append(batch.dynamics)
        explained = 1 - float(np.mean(error)) / float(torch.cat(targets).var(0).mean())
        return {"material_accuracy": float(np.mean(correct)), "explained": explained}
