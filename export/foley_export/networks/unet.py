"""AudioLDM's UNet and the RMS-ControlNet, a trainable copy of its encoder.

AudioLDM (Liu et al., ICML 2023), built from the blocks of latent diffusion (Rombach et al., CVPR 2022); ControlNet
(Zhang et al., ICCV 2023) as adapted by Video-Foley. Attribute names are those of the official checkpoint.
Feature maps are [batch, channels, time, mel]; `conditioning` is the [batch, 8 * width] vector of
`Encoder.conditioning`.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foley import clip
from foley.manifest import DenoiserConfig
from foley_export.networks.attention import attention


class Encoder(nn.Module):
    """The part shared by UNet and ControlNet: conditioning, downsampling path and middle block."""

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        conditioning_width = 8 * config.width
        half = conditioning_width // 2
        self.time_embed = TimeEmbedding(nn.Linear(config.width, half), nn.SiLU(), nn.Linear(half, half))
        self.film_emb = nn.Linear(clip.EMBEDDING_DIM, half)

        channels = config.width
        self.skip_widths = [channels]  # channels of every skip connection, first to last
        self.input_blocks = nn.ModuleList([Block([nn.Conv2d(clip.LATENT_CHANNELS, channels, 3, padding=1)])])
        for level, multiplier in enumerate(config.multipliers):
            width = config.width * multiplier
            for _ in range(config.residual_blocks):
                block = Block([ResidualBlock(channels, width, conditioning_width)])
                if level in config.attention_levels:
                    block.append(SpatialTransformer(width, config.head_width))
                self.input_blocks.append(block)
                self.skip_widths.append(width)
                channels = width
            if level < len(config.multipliers) - 1:
                self.input_blocks.append(Block([Downsample(channels)]))
                self.skip_widths.append(channels)
        self.middle_block = Block(
            [
                ResidualBlock(channels, channels, conditioning_width),
                SpatialTransformer(channels, config.head_width),
                ResidualBlock(channels, channels, conditioning_width),
            ]
        )

    def conditioning(self, timestep: Tensor, embedding: Tensor) -> Tensor:
        """Embed timesteps [batch] and CLAP embeddings [batch, 512] separately and concatenate the results."""
        time = self.time_embed(timestep)
        return torch.cat([time, self.film_emb(embedding)], dim=1)

    def encode(self, x: Tensor, conditioning: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the outputs of all input blocks, for the skip connections, and the output of the middle block."""
        skips = []
        for block in self.input_blocks:
            x = block(x, conditioning)
            skips.append(x)
        return skips, self.middle_block(x, conditioning)


class ControlNet(Encoder):
    """Takes latents with the control added and returns residuals for the UNet."""

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__(config)
        self.zero_convs = nn.ModuleList(nn.Sequential(nn.Conv2d(width, width, 1)) for width in self.skip_widths)
        self.middle_block_out_zero_conv = nn.Sequential(nn.Conv2d(self.skip_widths[-1], self.skip_widths[-1], 1))
        for convolution in (*self.zero_convs, self.middle_block_out_zero_conv):
            for parameter in convolution.parameters():
                nn.init.zeros_(parameter)  # at the start of training the ControlNet does not change the UNet

    def forward(self, latents: Tensor, timestep: Tensor, embedding: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return one residual for every skip connection of the UNet, first to last, and one for its middle block."""
        skips, middle = self.encode(latents, self.conditioning(timestep, embedding))
        additions = [convolution(skip) for convolution, skip in zip(self.zero_convs, skips, strict=True)]
        return additions, self.middle_block_out_zero_conv(middle)


class UNet(Encoder):
    """Predicts the noise, or the velocity, of noisy latents."""

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__(config)
        conditioning_width = 8 * config.width
        channels = self.skip_widths[-1]
        skip_widths = self.skip_widths.copy()
        self.output_blocks = nn.ModuleList()
        for level, multiplier in reversed(list(enumerate(config.multipliers))):
            width = config.width * multiplier
            for i in range(config.residual_blocks + 1):
                block = Block([ResidualBlock(channels + skip_widths.pop(), width, conditioning_width)])
                if level in config.attention_levels:
                    block.append(SpatialTransformer(width, config.head_width))
                if level > 0 and i == config.residual_blocks:
                    block.append(Upsample(width))
                self.output_blocks.append(block)
                channels = width
        self.out = nn.Sequential(
            group_norm(channels), nn.SiLU(), nn.Conv2d(channels, clip.LATENT_CHANNELS, 3, padding=1)
        )

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor,
        embedding: Tensor,
        control: tuple[list[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Return the prediction, of the shape of `latents`.

        Args:
            latents: Noisy latents [batch, 8, time, mel].
            timestep: Timesteps [batch].
            embedding: CLAP embeddings [batch, 512].
            control: Residuals of the `ControlNet`, added to the skip connections and the middle block's output.
        """
        conditioning = self.conditioning(timestep, embedding)
        skips, x = self.encode(latents, conditioning)
        if control is not None:
            additions, middle = control
            skips = [skip + addition for skip, addition in zip(skips, additions, strict=True)]
            x = x + middle
        for block in self.output_blocks:
            x = block(torch.cat([x, skips.pop()], dim=1), conditioning)
        return self.out(x)


class Block(nn.ModuleList):
    """A sequence of layers; residual blocks also receive the conditioning."""

    def forward(self, x: Tensor, conditioning: Tensor) -> Tensor:
        """Apply the layers to `x` in order."""
        for layer in self:
            x = layer(x, conditioning) if isinstance(layer, ResidualBlock) else layer(x)
        return x


class ResidualBlock(nn.Module):
    """Two convolutions with a skip connection; the conditioning is added between them."""

    def __init__(self, channels: int, width: int, conditioning_width: int) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(group_norm(channels), nn.SiLU(), nn.Conv2d(channels, width, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(conditioning_width, width))
        # Identity in place of the official dropout of 0, so that checkpoint key indices match.
        self.out_layers = nn.Sequential(
            group_norm(width), nn.SiLU(), nn.Identity(), nn.Conv2d(width, width, 3, padding=1)
        )
        self.skip_connection = nn.Identity() if channels == width else nn.Conv2d(channels, width, 1)

    def forward(self, x: Tensor, conditioning: Tensor) -> Tensor:
        """Return the feature map [batch, width, time, mel]."""
        hidden = self.in_layers(x) + self.emb_layers(conditioning)[:, :, None, None]
        return self.skip_connection(x) + self.out_layers(hidden)


class SpatialTransformer(nn.Module):
    """A transformer over all positions of a feature map, with a skip connection."""

    def __init__(self, channels: int, head_width: int) -> None:
        super().__init__()
        self.norm = group_norm(channels, eps=1e-6)
        self.proj_in = nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.Sequential(TransformerBlock(channels, head_width))
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return a feature map of the shape of `x`."""
        height, width = x.shape[2:]
        tokens = self.proj_in(self.norm(x)).flatten(2).transpose(1, 2)
        tokens = self.transformer_blocks(tokens)
        return x + self.proj_out(tokens.transpose(1, 2).unflatten(2, (height, width)))


class TransformerBlock(nn.Module):
    """Two self-attentions (AudioLDM gives the second one no cross-attention context), then feed-forward."""

    def __init__(self, width: int, head_width: int) -> None:
        super().__init__()
        self.attn1 = SelfAttention(width, head_width)
        self.attn2 = SelfAttention(width, head_width)
        self.ff = FeedForward(width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.norm3 = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens of the shape of `x`, [batch, tokens, width]."""
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x))
        return x + self.ff(self.norm3(x))


class SelfAttention(nn.Module):
    """Multi-head self-attention, [batch, tokens, width] -> the same shape; `head_width` must divide `width`."""

    def __init__(self, width: int, head_width: int) -> None:
        super().__init__()
        self.heads = width // head_width
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(width, width, bias=False)
        self.to_v = nn.Linear(width, width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Return the attention output, of the shape of `x`."""
        return self.to_out(attention(self.to_q(x), self.to_k(x), self.to_v(x), self.heads))


class FeedForward(nn.Module):
    """GEGLU feed-forward (Shazeer 2020) with a hidden width of 4 * width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        # Identity in place of the official dropout of 0, so that checkpoint key indices match.
        self.net = nn.Sequential(GEGLU(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Return the output, of the shape of `x`."""
        return self.net(x)


class GEGLU(nn.Module):
    """A linear layer whose second half of channels, through a GELU, gates the first."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, 2 * width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the gated values [..., width]."""
        values, gates = self.proj(x).chunk(2, dim=-1)
        return values * F.gelu(gates)


class TimeEmbedding(nn.Sequential):
    """Sinusoidal embedding of timesteps [batch], as wide as the first layer's input, followed by the layers."""

    def forward(self, timestep: Tensor) -> Tensor:
        """Return the embedding [batch, width of the last layer]."""
        first: Any = self[0]
        return super().forward(sinusoids(timestep, first.in_features))


class Downsample(nn.Module):
    """A convolution of stride 2, which halves time and mel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the feature map [batch, channels, time / 2, mel / 2]."""
        return self.op(x)


class Upsample(nn.Module):
    """Nearest-neighbour upsampling by 2, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the feature map [batch, channels, 2 * time, 2 * mel]."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def group_norm(channels: int, eps: float = 1e-5) -> nn.GroupNorm:
    """Return a GroupNorm with 32 groups, as at every official width, or fewer if 32 does not divide `channels`."""
    return nn.GroupNorm(math.gcd(32, channels), channels, eps)


def sinusoids(timestep: Tensor, width: int) -> Tensor:
    """Embed timesteps [batch] as [batch, width]: cosines, then sines, with periods from 2 pi to 20,000 pi."""
    half = width // 2
    frequencies = torch.exp(-math.log(10_000) / half * torch.arange(half, device=timestep.device))
    angles = timestep[:, None].float() * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)
