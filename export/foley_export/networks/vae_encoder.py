"""The encoder of AudioLDM's VAE: a log-mel spectrogram to the posterior distribution of its latents.

Used for training only; bundles do not contain it. The encoder of latent diffusion's autoencoder (Rombach et al.,
CVPR 2022). Attribute names are those of the official checkpoint. Feature maps are [batch, channels, time, mel].
"""

from torch import Tensor, nn
from torch.nn import functional as F

from foley import clip
from foley.manifest import Manifest, VaeConfig
from foley_export.networks.network import OfficialModule
from foley_export.networks.unet import group_norm
from foley_export.networks.vae_decoder import EPS, Middle, ResidualBlock

_MIN_LOGVAR, _MAX_LOGVAR = -30.0, 20.0


class VaeEncoder(OfficialModule):
    """Encodes a mel spectrogram; latents are a sample of the posterior times the scale factor."""

    def __init__(self, manifest: Manifest) -> None:
        super().__init__()
        moments = 2 * clip.LATENT_CHANNELS
        self.encoder = Encoder(manifest.vae_decoder, moments)
        self.quant_conv = nn.Conv2d(moments, moments, 1)

    @staticmethod
    def checkpoint_key(key: str) -> str:
        """Return the official checkpoint's key for `key`."""
        return f"first_stage_model.{key}"

    def forward(self, mel: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log variance, each [batch, 8, time / 4, 16], of a natural-log mel [batch, time, 64]."""
        mean, logvar = self.quant_conv(self.encoder(mel[:, None])).chunk(2, dim=1)
        return mean, logvar.clamp(_MIN_LOGVAR, _MAX_LOGVAR)


class Encoder(nn.Module):
    """One channel -> `outputs` channels; every level but the last halves time and mel."""

    def __init__(self, config: VaeConfig, outputs: int) -> None:
        super().__init__()
        widths = [config.width * multiplier for multiplier in config.multipliers]
        self.conv_in = nn.Conv2d(1, widths[0], 3, padding=1)
        outer_widths = [widths[0], *widths[:-1]]
        self.down = nn.ModuleList(
            Level(channels, width, config.residual_blocks, downsamples=level < len(widths) - 1)
            for level, (channels, width) in enumerate(zip(outer_widths, widths, strict=True))
        )
        self.mid = Middle(widths[-1])
        self.norm_out = group_norm(widths[-1], EPS)
        self.conv_out = nn.Conv2d(widths[-1], outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the moments [batch, outputs, time / 4, mel / 4]."""
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Level(nn.Module):
    """Residual blocks at one resolution, then downsampling to the next one."""

    def __init__(self, channels: int, width: int, blocks: int, downsamples: bool) -> None:
        super().__init__()
        self.block = nn.Sequential(*(ResidualBlock(width if i else channels, width) for i in range(blocks)))
        self.downsample = Downsample(width) if downsamples else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return the level's feature map."""
        return self.downsample(self.block(x))


class Downsample(nn.Module):
    """A convolution of stride 2, padded at the end of each axis only, as in the official implementation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Return the feature map [batch, channels, time / 2, mel / 2]."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))
