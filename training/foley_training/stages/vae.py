"""The VAE: log-mel spectrograms to latents for diffusion, and back.

AudioLDM's (Liu et al., ICML 2023) without its discriminator: absolute error, and the KL divergence to a standard normal
distribution, weighted so that unneeded latents stay empty and diffusion has less to learn.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from foley import clip
from foley.manifest import Manifest
from foley_export.networks.vae_decoder import VaeDecoder
from foley_export.networks.vae_encoder import VaeEncoder
from foley_training.config import LoopConfig
from foley_training.loop import Losses, Pass, Task
from foley_training.sounds import Sounds

CROP_FRAMES = 256  # mel frames: 2.56 s
_KL_WEIGHT = 0.03  # weight of the KL divergence; both terms are per mel value
_MEL_MEAN = -9.0
_FULL_CLIP_FRACTION = 0.15  # fraction of batches with a few whole clips instead of many crops


class Vae(Task[Tensor]):
    """Encoder and decoder, trained on random crops."""

    name = "vae"

    def __init__(self, manifest: Manifest, config: LoopConfig, train: Sounds, validation: Sounds) -> None:
        super().__init__()
        self.config, self.train_set, self.validation_set = config, train, validation
        self.encoder, self.decoder = VaeEncoder(manifest), VaeDecoder(manifest)
        self.decoder.scale_factor = 1.0
        with torch.no_grad():
            self.decoder.get_parameter("decoder.conv_out.bias").fill_(_MEL_MEAN)
        self.networks = nn.ModuleDict({"encoder": self.encoder, "decoder": self.decoder})
        self.passes = [Pass(self.networks, self.losses)]

    def batch(self, random: np.random.Generator) -> Tensor:
        """Return log-mels [batch, frames, 64] of random crops, or of a few whole clips."""
        # group normalisation is global, so training needs whole clips too
        full = random.random() < _FULL_CLIP_FRACTION
        length = clip.PADDED_ENVELOPE if full else CROP_FRAMES
        crops = [
            self.train_set.random_crop(random, length) for _ in range(max(1, self.config.batch * CROP_FRAMES // length))
        ]
        mels = np.stack([self.train_set.mels[index, first : first + length] for index, first in crops])
        return torch.from_numpy(mels.astype(np.float32)).to(self.device)

    def losses(self, mel: Tensor) -> Losses:
        """Return the absolute error of the reconstruction and the KL divergence."""
        mean, logvar = self.encoder(mel)
        mean, logvar = mean.float(), logvar.float()
        latents = mean + torch.randn_like(mean) * (0.5 * logvar).exp()
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum() / mel.numel()
        return {"error": (self.decoder(latents).float() - mel).abs().mean(), "kl": _KL_WEIGHT * kl}

    def validate(self) -> dict[str, float]:
        """Return the mean absolute error of the log-mel, overall and over audible values."""
        errors, audible = [], []
        for mel in mels(self.validation_set, 8, self.device):
            mean, _ = self.encoder(mel)
            error = (self.decoder(mean) - mel).abs()
            errors.append(float(error.mean()))
            audible.append(float(error[mel > _AUDIBLE].mean()))
        return {"mel_error": float(np.mean(errors)), "audible_error": float(np.mean(audible))}


_AUDIBLE = -6.0  # log magnitude above which a value counts as audible


def mels(sounds: Sounds, batch: int, device: torch.device) -> Iterator[Tensor]:
    """Yield the log-mels [batch, 1024, 64] of all clips in order."""
    for first in range(0, len(sounds.scenes), batch):
        yield torch.from_numpy(sounds.mels[first : first + batch].astype(np.float32)).to(device)
