"""The denoiser: one step's noise prediction, with ControlNet and classifier-free guidance in one graph."""

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
    """UNet and RMS-ControlNet. Every row of a batch is a request of its own: timestep, guidance and all.

    `guidance` is the scale s of classifier-free guidance (Ho & Salimans 2022),
    noise = uncond + s * (cond - uncond), the ControlNet taking part in both branches as officially.
    """

    stage_name = "denoiser"
    full_precision = frozenset({"unet.time_embed", "control_net.time_embed"})
    signal: Tensor
    both_branches = False

    def __init__(self, manifest: Manifest) -> None:
        super().__init__(manifest)
        self.prediction = manifest.denoiser.prediction
        self.register_buffer("signal", torch.from_numpy(schedule.alphas_cumprod()), persistent=False)
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

    def sample_inputs(self, batch: int = 2, lengths: dict[str, int] | None = None, seed: int = 0) -> tuple[Tensor, ...]:
        """As everywhere, but at timesteps from the last to the first."""
        latents, timestep, *rest = super().sample_inputs(batch, lengths, seed)
        return latents, torch.linspace(1, 999, len(timestep)).long()[:, None], *rest

    def for_gpu(self) -> None:
        """Let all rows go through both branches, those without guidance too."""
        self.both_branches = True

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
        conditional ones: a row without guidance costs half, but for `for_gpu`.
        """
        branches = Branches(guidance, self.both_branches)
        noise = self.branch(
            branches.repeat(latents),
            branches.repeat(timestep[:, 0]),
            branches.join(embedding, negative_embedding),
            branches.repeat(self.control(envelope)),
        )
        return branches.guide(noise)

    def control(self, envelope: Tensor) -> Tensor:
        """The envelope [batch, 1024] (linear RMS, 0 to 1) as the control [batch, 8, 256, 1]."""
        return self.control_projection(envelope[:, None, :, None])

    def branch(self, latents: Tensor, timestep: Tensor, embedding: Tensor, control: Tensor | None = None) -> Tensor:
        """Noise [batch, 8, 256, 16] with one embedding a row and no guidance; timesteps are [batch].

        Without a `control` the ControlNet is left out and AudioLDM predicts alone.
        """
        additions = None if control is None else self.control_net(latents + control, timestep, embedding)
        return self.to_noise(self.unet(latents, timestep, embedding, additions), latents, timestep)

    def to_noise(self, answer: Tensor, latents: Tensor, timestep: Tensor) -> Tensor:
        """The noise in `latents`, where the UNet's `answer` is that or the velocity.

        Salimans & Ho, "Progressive Distillation" (ICLR 2022): almost all of very noisy latents is noise. A small
        network that has to say all of it gets the rest, the sound, wrong by more than there is of it; one that says
        the velocity has only the rest to say.
        """
        if self.prediction == "noise":
            return answer
        signal = self.signal[timestep][:, None, None, None]
        return signal.sqrt() * answer + (1 - signal).sqrt() * latents


class Branches:
    """The rows of a batch, each in its conditional branch, and after them those with guidance in the unconditional."""

    def __init__(self, guidance: Tensor, both: bool = False) -> None:
        self.guidance = guidance  # [batch, 1]
        self.guided = None if both else torch.nonzero(guidance[:, 0] != 1)[:, 0]  # None: all

    def repeat(self, values: Tensor) -> Tensor:
        """What is the same in both branches [batch, ...], for all rows."""
        return self.join(values, values)

    def join(self, conditional: Tensor, unconditional: Tensor) -> Tensor:
        """What the two branches see [batch, ...], for all rows."""
        return torch.cat([conditional, unconditional if self.guided is None else unconditional[self.guided]])

    def guide(self, noise: Tensor) -> Tensor:
        """Classifier-free guidance on the noise of all rows; without guidance the branches are the same."""
        conditional, unconditional = noise.tensor_split([self.guidance.shape[0]])
        if self.guided is not None:
            unconditional = conditional.index_copy(0, self.guided, unconditional)
        return unconditional + self.guidance[:, :, None, None] * (conditional - unconditional)
