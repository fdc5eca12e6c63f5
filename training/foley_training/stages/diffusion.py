"""Latent diffusion in two stages: AudioLDM's UNet for text-to-audio, then the RMS-ControlNet on the frozen UNet.

Video-Foley (Lee et al., TASLP 2025, section III-B): both train on sounds only. The condition is the CLAP embedding of
the sound itself, replaced by that of the empty text in a tenth of the clips, for classifier-free guidance. The loss is
the squared error of the velocity (Salimans & Ho, ICLR 2022), which has weight at every noise level, with a lower weight
at low noise levels (after Hang et al., "Min-SNR", ICCV 2023).
"""

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers.audio_utils import hertz_to_mel, mel_to_hertz

from foley import clip, schedule
from foley.manifest import Manifest
from foley.sampler import Sampling, Step, sample
from foley_export.networks.denoiser import Denoiser
from foley_export.networks.vae_decoder import VaeDecoder
from foley_training.config import LoopConfig
from foley_training.latents import Latents
from foley_training.loop import Losses, Pass, Task

CROP_FRAMES = 256  # mel frames: 2.56 s
_FULL_CLIP_FRACTION = 0.3  # fraction of batches with a few whole clips instead of many crops
_UNCONDITIONAL_FRACTION = 0.1  # fraction of clips with the empty text's embedding
_SNR_GAMMA = 5.0
_CONTROL_GAINS = (10.0, 200.0)  # initial gains of the layer on linear RMS, for loud to near-silent sounds


@dataclass(frozen=True)
class NoisyBatch:
    """Noisy latents and their noise, [batch, 8, frames / 4, 16]; envelope [batch, frames], embeddings [batch, 512]."""

    latents: Tensor
    noise: Tensor
    timestep: Tensor
    embedding: Tensor
    envelope: Tensor


class Diffusion(Task[NoisyBatch]):
    """The part shared by the UNet's and the ControlNet's task: batches, loss weights and validation samples."""

    def __init__(
        self,
        manifest: Manifest,
        config: LoopConfig,
        train: Latents,
        validation: Latents,
        empty: npt.NDArray[np.float32],
        vae: VaeDecoder,
    ) -> None:
        super().__init__()
        self.config, self.train_set, self.validation_set, self.vae = config, train, validation, vae
        self.empty = empty  # [512], the embedding of the empty text
        self.denoiser = Denoiser(manifest)
        self._setup()

    @abstractmethod
    def _setup(self) -> None:
        """Set `networks`, `passes` and the initial weights."""

    def batch(self, random: np.random.Generator) -> NoisyBatch:
        """Return noisy latents of random crops, or of a few whole clips."""
        # attention and group normalisation are global, so training needs whole clips too
        length = clip.PADDED_ENVELOPE if random.random() < _FULL_CLIP_FRACTION else CROP_FRAMES
        count = max(1, self.config.batch * CROP_FRAMES // length)
        crops = [self.train_set.sounds.random_crop(random, length) for _ in range(count)]
        clean, envelopes, embeddings = [], [], []
        for index, first in crops:
            latent_frames = slice(first // clip.LATENT_REDUCTION, (first + length) // clip.LATENT_REDUCTION)
            mean, deviation = (
                a[index, :, latent_frames].astype(np.float32) for a in (self.train_set.mean, self.train_set.deviation)
            )
            latent = mean + deviation * random.standard_normal(mean.shape, np.float32)
            clean.append(latent * np.float32(self.train_set.scale_factor))
            envelopes.append(self.train_set.sounds.envelopes[index, first : first + length])
            prompted = random.random() >= _UNCONDITIONAL_FRACTION
            embeddings.append(self.train_set.embeddings[index] if prompted else self.empty)
        arrays = (
            np.stack(clean),
            random.integers(schedule.TRAIN_STEPS, size=count),
            random.standard_normal((count, *clean[0].shape), np.float32),
            np.stack(embeddings),
            np.stack(envelopes),
        )
        latents, timestep, noise, embedding, envelope = (torch.from_numpy(array).to(self.device) for array in arrays)
        alphas_cumprod = self.denoiser.alphas_cumprod[timestep][:, None, None, None]
        noisy = alphas_cumprod.sqrt() * latents + (1 - alphas_cumprod).sqrt() * noise
        return NoisyBatch(noisy, noise, timestep, embedding, envelope)

    def losses(self, batch: NoisyBatch) -> Losses:
        """Return the weighted squared error of the velocity."""
        error = (self.predict(batch).float() - batch.noise).square().mean((1, 2, 3))
        alphas_cumprod = self.denoiser.alphas_cumprod[batch.timestep]
        # velocity error = noise error / sqrt(alphas_cumprod); 1 / (1 - alphas_cumprod) = SNR + 1
        weights = (_SNR_GAMMA * (1 - alphas_cumprod)).clamp(max=1) / alphas_cumprod
        return {"velocity": (error * weights).mean()}

    @abstractmethod
    def predict(self, batch: NoisyBatch) -> Tensor:
        """Return the predicted noise of `batch`."""

    def sample_clips(self, control: bool, clips: int = 6, steps: int = 12) -> list[tuple[np.ndarray, np.ndarray]]:
        """Generate validation clips from their own embeddings; return requested envelopes and loudness, [1024] each.

        The loudness is measured on the mel spectrogram, because the vocoder may not be trained yet.
        """
        results = []
        for i in range(clips):
            embedding = torch.from_numpy(self.validation_set.embeddings[i])[None].to(self.device)
            envelope = torch.from_numpy(np.array(self.validation_set.sounds.envelopes[i]))[None].to(self.device)
            control_map = self.denoiser.control(envelope) if control else None
            denoise = self._guided(embedding, control_map)
            *_, latents = sample(denoise, Sampling(steps=steps, seed=i))
            mel = self.vae(torch.from_numpy(latents)[None].to(self.device))
            results.append((envelope[0].cpu().numpy(), mel_loudness(mel[0]).cpu().numpy()))
        return results

    def _guided(self, embedding: Tensor, control: Tensor | None, guidance: float = 3.5) -> Callable[..., np.ndarray]:
        embeddings = torch.cat([embedding, torch.from_numpy(self.empty)[None].to(self.device)])

        def denoise(latents: np.ndarray, step: Step) -> np.ndarray:
            rows = torch.from_numpy(latents).to(self.device).expand(2, -1, -1, -1)
            controls = None if control is None else control.expand(2, -1, -1, -1)
            with torch.autocast(self.device.type, torch.bfloat16):
                noise = self.denoiser.predict_noise(
                    rows, torch.full((2,), step.timestep, device=self.device), embeddings, controls
                )
            conditional, unconditional = noise.float()
            return (unconditional + guidance * (conditional - unconditional)).cpu().numpy()

        return denoise


class UNetTask(Diffusion):
    """Text-to-audio: the UNet without ControlNet."""

    name = "unet"

    def _setup(self) -> None:
        unet = self.denoiser.unet
        with torch.no_grad():
            # unit-length embeddings have values around 0.04 (512 of them); scale up the layer's initial response
            unet.film_emb.weight.mul_(math.sqrt(clip.EMBEDDING_DIM) / 2)
            unet.get_parameter("out.2.weight").zero_()
        self.networks = nn.ModuleDict({"unet": unet})
        self.passes = [Pass(unet, self.losses)]

    def predict(self, batch: NoisyBatch) -> Tensor:
        """Return the predicted noise of `batch`."""
        return self.denoiser.predict_noise(batch.latents, batch.timestep, batch.embedding)

    def validate(self) -> dict[str, float]:
        """Return the fraction of loud frames in generated clips, relative to that of the real ones."""
        ratios = [
            [float((curve > 0.1 * curve.max()).mean()) for curve in pair] for pair in self.sample_clips(control=False)
        ]
        return {"loud_ratio": sum(generated for _, generated in ratios) / sum(real for real, _ in ratios)}


class ControlNetTask(Diffusion):
    """The ControlNet, a copy of the UNet's encoder, and the projection of the envelope. The UNet is frozen."""

    name = "control_net"

    def init_from_unet(self, unet: dict[str, Tensor]) -> "ControlNetTask":
        """Initialise UNet and ControlNet from the state dict of a trained UNet, freeze the UNet and return self."""
        self.denoiser.unet.load_state_dict(unet)
        self.denoiser.unet.requires_grad_(False)
        own = self.denoiser.control_net.state_dict()
        self.denoiser.control_net.load_state_dict({key: unet.get(key, value) for key, value in own.items()})
        return self

    def _setup(self) -> None:
        projection = self.denoiser.control_projection
        with torch.no_grad():
            # the log-mel is logarithmic in RMS: high gains separate quiet from silent
            gains = torch.from_numpy(np.geomspace(*_CONTROL_GAINS, clip.LATENT_CHANNELS)).float()
            projection.get_parameter("0.weight").mul_(gains[:, None, None, None])
        self.networks = nn.ModuleDict({"control_net": self.denoiser.control_net, "control_projection": projection})
        self.passes = [Pass(self.networks, self.losses)]

    def predict(self, batch: NoisyBatch) -> Tensor:
        """Return the predicted noise of `batch`."""
        control = self.denoiser.control(batch.envelope)
        return self.denoiser.predict_noise(batch.latents, batch.timestep, batch.embedding, control)

    def validate(self) -> dict[str, float]:
        """Return the mean Pearson correlation of requested envelopes and produced loudness."""
        return {"correlation": float(np.mean([np.corrcoef(*pair)[0, 1] for pair in self.sample_clips(control=True)]))}


def mel_loudness(log_mel: Tensor) -> Tensor:
    """Return the loudness of the frames of a log-mel [frames, 64], up to a factor: the root of the power, [frames]."""
    return (log_mel.exp().square() * _band_widths().to(log_mel.device)).sum(-1).sqrt()


def _band_widths() -> Tensor:
    """Return the widths of the 64 mel bands in Hz, [64].

    Filters of unit area return mean magnitudes, so a band's power is the squared mean times its width.
    """
    highest = hertz_to_mel(clip.SAMPLE_RATE_HZ / 2, "slaney")
    edges = np.asarray(mel_to_hertz(np.linspace(0, highest, clip.MEL_BINS + 2), "slaney"))
    return torch.from_numpy((edges[2:] - edges[:-2]) / 2).float()
