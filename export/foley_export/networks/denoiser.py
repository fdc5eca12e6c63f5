"""The denoiser: one step's noise prediction, with ControlNet and classifier-free guidance in one graph."""

import torch
from torch import Tensor, nn

from foley import clip, sampler
from foley.manifest import Manifest
from foley_export.networks.network import Network
from foley_export.networks.unet import ControlNet, UNet

_CHECKPOINT_PREFIXES = {
    "unet": "model.diffusion_model",
    "control_net": "model.diffusion_model.control_net",
    "control_projection": "model.diffusion_model.control_net_input_projection_list",
}


class Denoiser(Network):
    """UNet and RMS-ControlNet. Every row of a batch is a request of its own: timestep, guidance and all.

    `guidance` is the scale s of classifier-free guidance (Ho & Salimans 2022),
    noise = uncond + s * (cond - uncond), the ControlNet taking part in both branches as officially.
    """

    stage_name = "denoiser"
    signal: Tensor

    def __init__(self, manifest: Manifest) -> None:
        super().__init__(manifest)
        self.prediction = manifest.denoiser.prediction
        self.register_buffer("signal", torch.from_numpy(sampler.alphas_cumprod()), persistent=False)
        self.unet = UNet(manifest.denoiser)
        self.control_net = ControlNet(manifest.denoiser)
        self.control_projection = nn.Sequential(
            nn.Conv2d(1, clip.LATENT_CHANNELS, (3, 1), stride=(clip.LATENT_REDUCTION, 1)),
            nn.Conv2d(clip.LATENT_CHANNELS, clip.LATENT_CHANNELS, 1),
        )

    @staticmethod
    def checkpoint_key(key: str) -> str:
        part, rest = key.split(".", maxsplit=1)
        return f"{_CHECKPOINT_PREFIXES[part]}.{rest}"

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor,
        envelope: Tensor,
        embedding: Tensor,
        negative_embedding: Tensor,
        guidance: Tensor,
    ) -> Tensor:
        """The guided noise [batch, 8, 256, 16]; inputs as in the stage's contract.

        The unconditional branch runs only for rows whose guidance is not 1, in one batch with all the
        conditional ones: a row without guidance costs half.
        """
        batch = latents.shape[0]
        guided = torch.nonzero(guidance[:, 0] != 1)[:, 0]
        rows = torch.cat([torch.arange(batch, device=latents.device), guided])
        noise = self.branch(
            latents[rows],
            timestep[rows, 0],
            torch.cat([embedding, negative_embedding[guided]]),
            self.control(envelope)[rows],
        )
        conditional = noise[:batch]
        unconditional = conditional.index_copy(0, guided, noise[batch:])
        return unconditional + guidance[:, :, None, None] * (conditional - unconditional)

    def control(self, envelope: Tensor) -> Tensor:
        """The envelope [batch, 1024] (linear RMS, 0 to 1) as the control [batch, 8, 256, 1]."""
        return self.control_projection(envelope[:, None, :, None])

    def branch(self, latents: Tensor, timestep: Tensor, embedding: Tensor, control: Tensor | None = None) -> Tensor:
        """Noise [batch, 8, 256, 16] with one embedding a row and no guidance; timesteps are [batch].

        Without a `control` the ControlNet is left out and AudioLDM predicts alone.
        """
        additions = None if control is None else self.control_net(latents + control, timestep, embedding)
        answer = self.unet(latents, timestep, embedding, additions)
        return answer if self.prediction == "noise" else self._noise_of(answer, latents, timestep)

    def _noise_of(self, velocity: Tensor, latents: Tensor, timestep: Tensor) -> Tensor:
        """Salimans & Ho, "Progressive Distillation" (ICLR 2022): the noise in `latents` that have this velocity.

        Almost all of very noisy latents is noise. A small network that has to say all of it gets the rest, the sound,
        wrong by more than there is of it; one that says the velocity has only the rest to say.
        """
        signal = self.signal[timestep][:, None, None, None]
        return signal.sqrt() * velocity + (1 - signal).sqrt() * latents
