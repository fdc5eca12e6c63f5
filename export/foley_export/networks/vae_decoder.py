"""The decoder of AudioLDM's VAE: latents to a log-mel spectrogram.

The decoder of latent diffusion's autoencoder (Rombach et al., CVPR 2022). Attribute names are those of the official
checkpoint. Feature maps are [batch, channels, time, mel].
"""

from torch import Tensor, nn
from torch.nn import functional as F

from foley import clip
from foley.manifest import Manifest, VaeConfig
from foley_export.networks.network import Network
from foley_export.networks.unet import Upsample, group_norm

EPS = 1e-6  # of every group normalisation in the VAE


class VaeDecoder(Network):
    """Divides latents by the scale factor and decodes them."""

    stage_name = "vae_decoder"

    def __init__(self, manifest: Manifest) -> None:
        super().__init__(manifest)
        self.scale_factor = manifest.vae_decoder.scale_factor
        self.post_quant_conv = nn.Conv2d(clip.LATENT_CHANNELS, clip.LATENT_CHANNELS, 1)
        self.decoder = Decoder(manifest.vae_decoder)

    @staticmethod
    def checkpoint_key(key: str) -> str:
        """Return the official checkpoint's key for `key`."""
        return f"first_stage_model.{key}"

    def forward(self, latents: Tensor) -> Tensor:
        """Return the natural-log mel spectrogram [batch, 4 * time, 64] of latents [batch, 8, time, 16]."""
        return self.decoder(self.post_quant_conv(latents / self.scale_factor))[:, 0]


class Decoder(nn.Module):
    """[batch, 8, time, mel] -> one channel; every level but the first doubles time and mel."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        widths = [config.width * multiplier for multiplier in config.multipliers]
        self.conv_in = nn.Conv2d(clip.LATENT_CHANNELS, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1])
        inner_widths = [*widths[1:], widths[-1]]
        # Level 0 has the highest resolution and runs last.
        self.up = nn.ModuleList(
            Level(channels, width, config.residual_blocks + 1, upsamples=level > 0)
            for level, (channels, width) in enumerate(zip(inner_widths, widths, strict=True))
        )
        self.norm_out = group_norm(widths[0], EPS)
        self.conv_out = nn.Conv2d(widths[0], 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the decoded map [batch, 1, 4 * time, 4 * mel]."""
        x = self.mid(self.conv_in(x))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Middle(nn.Module):
    """Two residual blocks with self-attention over the whole feature map between them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(channels, channels)
        self.attn_1 = SelfAttention(channels)
        self.block_2 = ResidualBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return a feature map of the shape of `x`."""
        return self.block_2(self.attn_1(self.block_1(x)))


class Level(nn.Module):
    """Residual blocks at one resolution, then upsampling to the next one."""

    def __init__(self, channels: int, width: int, blocks: int, upsamples: bool) -> None:
        super().__init__()
        self.block = nn.Sequential(*(ResidualBlock(width if i else channels, width) for i in range(blocks)))
        self.upsample = Upsample(width) if upsamples else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return the level's feature map."""
        return self.upsample(self.block(x))


class ResidualBlock(nn.Module):
    """Two convolutions, each after group normalisation and SiLU, with a skip connection."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.norm1 = group_norm(channels, EPS)
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1)
        self.norm2 = group_norm(width, EPS)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.nin_shortcut = nn.Identity() if channels == width else nn.Conv2d(channels, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the feature map [batch, width, time, mel]."""
        hidden = self.conv1(F.silu(self.norm1(x)))
        return self.nin_shortcut(x) + self.conv2(F.silu(self.norm2(hidden)))


class SelfAttention(nn.Module):
    """Single-head self-attention over all positions of a feature map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels, EPS)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return a feature map of the shape of `x`."""
        height, width = x.shape[2:]
        normalised = self.norm(x)
        query, key, value = (
            layer(normalised).flatten(2).transpose(1, 2)[:, None] for layer in (self.q, self.k, self.v)
        )
        tokens = F.scaled_dot_product_attention(query, key, value)[:, 0]
        return x + self.proj_out(tokens.transpose(1, 2).unflatten(2, (height, width)))
