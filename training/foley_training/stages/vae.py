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

PIECE = 256  # mel frames: 2.56 s
_DIVERGENCE = 0.03  # weight of the KL divergence; both terms are per mel value
_AVERAGE_MEL = -9.0
_WHOLE = 0.15  # fraction of batches with a few whole clips instead of many pieces


class Vae(Task[Tensor]):
    """Encoder and decoder, trained on random pieces."""

    name = "vae"

    def __init__(self, manifest: Manifest, config: LoopConfig, train: Sounds, validation: Sounds) -> None:
        super().__init__()
        self.config, self.train_set, self.validation_set = config, train, validation
        self.encoder, self.decoder = VaeEncoder(manifest), VaeDecoder(manifest)
        self.decoder.scale_factor = 1.0
        with torch.no_grad():
            self.decoder.get_parameter("decoder.conv_out.bias").fill_(_AVERAGE_MEL)
        self.networks = nn.ModuleDict({"encoder": self.encoder, "decoder": self.decoder})
        self.passes = [Pass(self.networks, self.losses)]

    def batch(self, random: np.random.Generator) -> Tensor:
        """Return log-mels [batch, frames, 64] of random pieces, or of a few whole clips."""
        # group normalisation is global, so training needs whole clips too
        whole = random.random() < _WHOLE
        length = clip.PADDED_ENVELOPE if whole else PIECE
        pieces = [self.train_set.piece(random, length) for _ in range(max(1, self.config.batch * PIECE // length))]
        mels = np.stack([self.train_set.mels[index, first : first + length] for index, first in pieces])
        return torch.from_numpy(mels.astype(np.float32)).to(self.device)

    def losses(self, mel: Tensor) -> Losses:
        """Return the absolute error of the reconstruction and the KL divergence."""
        mean, logvar = self.encoder(mel)
        mean, logvar = mean.float(), logvar.float()
        latents = mean + torch.randn_like(mean) * (0.5 * logvar).exp()
        divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum() / mel.numel()
        return {"error": (self.decoder(latents).float() - mel).abs().mean(), "kl": _DIVERGENCE * divergence}

    def validate(self) -> dict[str, float]:
        """Return the mean absolute error of the log-mel, overall and over audible values."""
        errors, heard = [], []
        for mel in mels(self.validation_set, 8, self.device):
            mean, _ = self.encoder(mel)
            error = (self.decoder(mean) - mel).abs()
            errors.append(float(error.mean()))
            heard.append(float(error[mel > _HEARD].mean()))
        return {"mel_error": float(np.mean(errors)), "heard_error": float(np.mean(heard))}


_HEARD = -6.0  # log magnitude above which a value counts as audible


def mels(sounds: Sounds, batch: int, device: torch.device) -> Iterator[Tensor]:
    """Yield the log-mels [batch, 1024, 64] of all clips in order."""
    for first in range(0, len(sounds.scenes), batch):
        yield torch.from_numpy(sounds.mels[first : first + batch].astype(np.float32)).to(device)
