"""The denoiser: noise prediction of one step, with ControlNet and classifier-free guidance in one graph."""

import torch
from torch import Tensor, nn

from foley import clip, schedule
from foley.manifest import Manifest
from foley_export.networks.network import Network
from foley_export.networks.unet import ControlNet, UNet

_CHECKPOINT_PREFIXES = {
    "unet": "model.diffusion_model",
    "control_net": "model.diffusion_model.control_net",
    "control_projection": "model.diffusion_model.control_net_input_projection_list",
}


class Denoiser(Network):
    """UNet and RMS-ControlNet. Rows of a batch are independent requests with their own timestep and guidance.

    `guidance` is the scale s of classifier-free guidance (Ho & Salimans 2022),
    noise = uncond + s * (cond - uncond). The ControlNet is used in both branches, as in the official implementation.
    """

    stage_name = "denoiser"
    full_precision = frozenset({"unet.time_embed", "control_net.time_embed"})
    alphas_cumprod: Tensor
    full_cfg_batch = False

    def __init__(self, manifest: Manifest) -> None:
        super().__init__(manifest)
        self.prediction = manifest.denoiser.prediction
        self.register_buffer("alphas_cumprod", torch.from_numpy(schedule.alphas_cumprod()), persistent=False)
        self.unet = UNet(manifest.denoiser)
        self.control_net = ControlNet(manifest.denoiser)
        self.control_projection = nn.Sequential(
            nn.Conv2d(1, clip.LATENT_CHANNELS, (3, 1), stride=(clip.LATENT_REDUCTION, 1)),
            nn.Conv2d(clip.LATENT_CHANNELS, clip.LATENT_CHANNELS, 1),
        )

    @staticmethod
    def checkpoint_key(key: str) -> str:
        """Return the official checkpoint's key for `key`."""
        part, rest = key.split(".", maxsplit=1)
        return f"{_CHECKPOINT_PREFIXES[part]}.{rest}"

    def sample_inputs(self, batch: int = 2, lengths: dict[str, int] | None = None, seed: int = 0) -> tuple[Tensor, ...]:
        """Return random inputs as `Network.sample_inputs` does, with timesteps spread over 1 to 999."""
        latents, timestep, *rest = super().sample_inputs(batch, lengths, seed)
        return latents, torch.linspace(1, 999, len(timestep)).long()[:, None], *rest

    def for_gpu(self) -> None:
        """Compute both guidance branches for all rows, including rows with guidance 1."""
        self.full_cfg_batch = True

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor,
        envelope: Tensor,
        embedding: Tensor,
        negative_embedding: Tensor,
        guidance: Tensor,
    ) -> Tensor:
        """Return the guided noise [batch, 8, 256, 16]; the stage defines the inputs.

        The unconditional branch runs only for rows whose guidance is not 1, in the same UNet batch as the conditional
        rows. A row without guidance therefore costs half, unless `for_gpu` was called.
        """
        cfg_batch = CfgBatch(guidance, self.full_cfg_batch)
        noise = self.predict_noise(
            cfg_batch.repeat(latents),
            cfg_batch.repeat(timestep[:, 0]),
            cfg_batch.concatenate(embedding, negative_embedding),
            cfg_batch.repeat(self.control(envelope)),
        )
        return cfg_batch.apply_guidance(noise)

    def control(self, envelope: Tensor) -> Tensor:
        """Project the envelope [batch, 1024] (linear RMS, 0 to 1) to the control [batch, 8, 256, 1]."""
        return self.control_projection(envelope[:, None, :, None])

    def predict_noise(
        self, latents: Tensor, timestep: Tensor, embedding: Tensor, control: Tensor | None = None
    ) -> Tensor:
        """Return the noise [batch, 8, 256, 16] for one embedding per row, without guidance.

        Args:
            latents: Noisy latents [batch, 8, 256, 16].
            timestep: Timesteps [batch].
            embedding: CLAP embeddings [batch, 512].
            control: Output of `control`; None skips the ControlNet, which leaves plain AudioLDM.
        """
        additions = None if control is None else self.control_net(latents + control, timestep, embedding)
        return self.to_noise(self.unet(latents, timestep, embedding, additions), latents, timestep)

    def to_noise(self, model_output: Tensor, latents: Tensor, timestep: Tensor) -> Tensor:
        """Convert the UNet's output to noise: it is the noise itself, or the velocity for v-prediction.

        Salimans & Ho, "Progressive Distillation" (ICLR 2022). At high noise levels the latents are almost entirely
        noise. In a noise prediction by a small network the error is then larger than the remaining signal; with
        v-prediction the network only has to predict that remainder.
        """
        if self.prediction == "noise":
            return model_output
        alphas_cumprod = self.alphas_cumprod[timestep][:, None, None, None]
        return alphas_cumprod.sqrt() * model_output + (1 - alphas_cumprod).sqrt() * latents


class CfgBatch:
    """Builds the CFG batch: all rows with their conditional inputs, then the guided rows with unconditional inputs."""

    def __init__(self, guidance: Tensor, full: bool = False) -> None:
        self.guidance = guidance  # [batch, 1]
        self.guided_rows = None if full else torch.nonzero(guidance[:, 0] != 1)[:, 0]  # None: all

    def repeat(self, values: Tensor) -> Tensor:
        """Repeat `values` [batch, ...] that are the same in both branches for the rows of the CFG batch."""
        return self.concatenate(values, values)

    def concatenate(self, conditional: Tensor, unconditional: Tensor) -> Tensor:
        """Concatenate conditional and unconditional values [batch, ...] to the CFG batch."""
        return torch.cat([conditional, unconditional if self.guided_rows is None else unconditional[self.guided_rows]])

    def apply_guidance(self, noise: Tensor) -> Tensor:
        """Apply classifier-free guidance to the CFG batch's noise; rows with guidance 1 keep the conditional noise."""
        conditional, unconditional = noise.tensor_split([self.guidance.shape[0]])
        if self.guided_rows is not None:
            unconditional = conditional.index_copy(0, self.guided_rows, unconditional)
        return unconditional + self.guidance[:, :, None, None] * (conditional - unconditional)
