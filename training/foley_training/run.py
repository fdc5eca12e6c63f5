"""A training run: the stages in order, each built on the results of earlier ones in the work folder."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer

from foley.errors import SettingError
from foley.manifest import DisFlowConfig, Manifest
from foley_export.networks.bn_inception import FlowFeatures, RgbFeatures
from foley_export.networks.vae_decoder import VaeDecoder
from foley_export.presets import PRESETS
from foley_export.tokenizer import train_tokenizer
from foley_training.config import LoopConfig, TrainingConfig
from foley_training.feature_rows import FeatureRows, feature_rows
from foley_training.group_norm import use_fast_group_norm
from foley_training.latents import Latents, latents
from foley_training.loop import Task, load_trained, train
from foley_training.sounds import Sounds, sounds
from foley_training.stages.clap import Clap, sentences
from foley_training.stages.diffusion import ControlNetTask, UNetTask
from foley_training.stages.features import Features
from foley_training.stages.vae import Vae
from foley_training.stages.video2rms import Classification, Regression
from foley_training.stages.vocoder import VocoderTask
from foley_training.videos import Pairs, pairs

TaskType = TypeVar("TaskType", bound=Task[Any])

_TOKENIZER_SCENES = 500  # scenes whose captions the tokenizer learns from


@dataclass(frozen=True)
class Run:
    """A training run.

    Attributes:
        config: The run's configuration.
        work: Folder for caches, checkpoints and logs.
        device: Device for training and for computing latents and features.
    """

    config: TrainingConfig
    work: Path
    device: torch.device

    @property
    def manifest(self) -> Manifest:
        """The manifest of the trained preset."""
        return PRESETS[self.config.preset]

    def sounds(self) -> tuple[Sounds, Sounds]:
        """Return training and validation sounds."""
        cache = self.work / "cache"
        return sounds(cache, "train", self.config.sounds), sounds(cache, "validation", self.config.validation)

    def tokenizer(self) -> Tokenizer:
        """Train the tokenizer; the result is deterministic."""
        return train_tokenizer(sentences(_TOKENIZER_SCENES), self.manifest.clap_text)

    def clap(self) -> Clap:
        """Return the task of CLAP."""
        return Clap(self.manifest, self.config.clap, self.tokenizer(), *self.sounds())

    def vae(self) -> Vae:
        """Return the task of the VAE."""
        return Vae(self.manifest, self.config.vae, *self.sounds())

    def vocoder(self) -> VocoderTask:
        """Return the task of the vocoder."""
        return VocoderTask(self.manifest, self.config.vocoder, *self.sounds())

    def unet(self) -> UNetTask:
        """Return the task of the UNet; requires CLAP and the VAE."""
        return UNetTask(self.manifest, self.config.unet, *self._diffusion())

    def control_net(self) -> ControlNetTask:
        """Return the task of the ControlNet; requires CLAP, the VAE and the UNet."""
        task = ControlNetTask(self.manifest, self.config.control_net, *self._diffusion())
        return task.init_from_unet(self.trained(self.unet()).denoiser.unet.state_dict())

    def rgb_features(self) -> Features:
        """Return the task of the RGB feature network."""
        return Features(RgbFeatures(self.manifest), self.config.rgb_features, *self._pairs())

    def flow_features(self) -> Features:
        """Return the task of the flow feature network."""
        return Features(FlowFeatures(self.manifest), self.config.flow_features, *self._pairs())

    def video2rms(self) -> Classification:
        """Return the task of Video2RMS; requires both feature networks."""
        return Classification(self.manifest, self.config.video2rms, *self._feature_rows())

    def video2rms_regression(self) -> Regression:
        """Return the task of Video2RMS' regression baseline; requires both feature networks."""
        return Regression(self.manifest, self.config.video2rms_regression, *self._feature_rows())

    def trained(self, task: TaskType) -> TaskType:
        """Return `task` on the run's device with its trained weights.

        Raises:
            SettingError: If its training has not started.
        """
        if not load_trained(task, self.work):
            raise SettingError(f"the stage {task.name} is not trained; train it first")
        return task.to(self.device)

    def latents(self) -> tuple[Latents, Latents]:
        """Return the latents of training and validation sounds; requires CLAP and the VAE."""
        encoder, audio = self.trained(self.vae()).encoder, self.trained(self.clap()).audio
        names = (f"train-{self.config.sounds}", f"validation-{self.config.validation}")
        train_sounds, validation_sounds = self.sounds()
        return (
            latents(self.work / "cache" / names[0], train_sounds, encoder, audio),
            latents(self.work / "cache" / names[1], validation_sounds, encoder, audio),
        )

    @torch.no_grad()
    def _diffusion(self) -> tuple[Latents, Latents, npt.NDArray[np.float32], VaeDecoder]:
        train_latents, validation_latents = self.latents()
        decoder = self.trained(self.vae()).decoder
        decoder.scale_factor = train_latents.scale_factor
        (empty,) = self.trained(self.clap()).embed_texts([""])
        return train_latents, validation_latents, empty.cpu().numpy(), decoder

    def _flow(self) -> DisFlowConfig:
        flow = self.manifest.optical_flow
        if not isinstance(flow, DisFlowConfig):
            raise SettingError(f"the preset {self.config.preset} uses RAFT; choose a preset that uses DIS")
        return flow

    def _pairs(self) -> tuple[Pairs, Pairs]:
        cache, flow = self.work / "cache", self._flow()
        return (
            pairs(cache, "train", self.config.pictured_videos, flow),
            pairs(cache, "validation", self.config.validation_videos, flow),
        )

    def _feature_rows(self) -> tuple[FeatureRows, FeatureRows]:
        cache, flow = self.work / "cache", self._flow()
        rgb = RgbFeatures(self.manifest).eval().to(self.device)
        motion = FlowFeatures(self.manifest).eval().to(self.device)
        rgb.network.load_state_dict(self.trained(self.rgb_features()).networks["network"].state_dict())
        motion.network.load_state_dict(self.trained(self.flow_features()).networks["network"].state_dict())
        return (
            feature_rows(cache, "train", self.config.videos, flow, rgb, motion),
            feature_rows(cache, "validation", self.config.validation_videos, flow, rgb, motion),
        )


STAGES: dict[str, Callable[[Run], Task[Any]]] = {
    "clap": Run.clap,
    "vae": Run.vae,
    "vocoder": Run.vocoder,
    "unet": Run.unet,
    "control_net": Run.control_net,
    "rgb_features": Run.rgb_features,
    "flow_features": Run.flow_features,
    "video2rms": Run.video2rms,
    "video2rms_regression": Run.video2rms_regression,
}
"""Stage name -> task, in dependency order."""


def train_stage(run: Run, stage: str) -> None:
    """Train one stage or resume it; returns immediately if it is finished.

    The configured seed determines the initial weights as well as every step.
    """
    torch.manual_seed(run.config.seed)
    task = STAGES[stage](run)
    use_fast_group_norm(task.networks)
    task.networks.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # faster on a CPU
    loop: LoopConfig = getattr(run.config, stage)
    train(task, loop, run.config.seed, run.work, run.device)
