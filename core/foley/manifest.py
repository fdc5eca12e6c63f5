"""What a bundle holds: the configuration of every network, sampling defaults, and the files.

A bundle is one folder (see DESIGN, section 3); its `manifest.json` is this model. Presets are
manifests that differ only in these numbers; the defaults are the official sizes (`paper`).
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

Positive = Annotated[int, Field(gt=0)]


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class OpticalFlowConfig(_Config):
    """RAFT (torchvision's `raft_large` by default). Widths are channels."""

    encoder_widths: tuple[Positive, Positive, Positive, Positive, Positive] = (64, 64, 96, 128, 256)
    hidden_width: Positive = 128  # of the recurrent state; the context takes the rest of the encoder's last width
    correlation_levels: Positive = 4
    correlation_radius: Positive = 4
    motion_correlation_widths: tuple[Positive, Positive] = (256, 192)
    motion_flow_widths: tuple[Positive, Positive] = (128, 64)
    motion_width: Positive = 128
    head_width: Positive = 256  # hidden layers of the flow head and of the mask predictor
    updates: Positive = 12
    chain: Positive = 4  # pairs that are found one from the other in `optical_flow_warm`
    first_updates: Positive = 6  # at most, there, of a chain's first pair
    warm_updates: Positive = 2  # at most, there, of the others


class DisFlowConfig(_Config):
    """OpenCV's DIS in place of RAFT: no network, and a laptop keeps up with the video (see `foley.dis_flow`)."""

    preset: Literal["ultrafast", "fast", "medium"] = "fast"  # OpenCV's names


def _flow_method(optical_flow: Any) -> str:
    """Which of the two a manifest means; RAFT's was there first and has no tag."""
    is_dis = isinstance(optical_flow, DisFlowConfig) or (isinstance(optical_flow, dict) and "preset" in optical_flow)
    return "dis" if is_dis else "raft"


FlowConfig = Annotated[
    Annotated[OpticalFlowConfig, Tag("raft")] | Annotated[DisFlowConfig, Tag("dis")], Discriminator(_flow_method)
]


class FeaturesConfig(_Config):
    """BN-Inception; `width_divisor` divides every channel count (1, 2, 4, 8, 16 or 32)."""

    width_divisor: Literal[1, 2, 4, 8, 16, 32] = 1

    @property
    def width(self) -> int:
        """Channels of the pooled feature vector: 1024 at full width."""
        return 1024 // self.width_divisor


class Video2RMSConfig(_Config):
    """Conv1d blocks, a Bi-LSTM, and the two linear layers along time and features."""

    convolutions: Positive = 3
    kernel: Positive = 5
    lstm_layers: Positive = 2
    lstm_width: Positive = 512  # each way
    classes: Positive = 64


class ClapTextConfig(_Config):
    """RoBERTa (base by default) and CLAP's projection."""

    vocabulary: Positive = 50_265
    max_tokens: Positive = 512
    width: Positive = 768
    layers: Positive = 12
    heads: Positive = 12
    feed_forward_width: Positive = 3_072


class ClapAudioConfig(_Config):
    """HTSAT (tiny by default) and CLAP's projection."""

    width: Positive = 96  # of the first stage; doubles with every stage
    depths: tuple[Positive, Positive, Positive, Positive] = (2, 2, 6, 2)
    heads: tuple[Positive, Positive, Positive, Positive] = (4, 8, 16, 32)


class DenoiserConfig(_Config):
    """AudioLDM's UNet (S by default) and the RMS-ControlNet, a copy of its encoder."""

    width: Positive = 128
    multipliers: Annotated[tuple[Positive, ...], Field(min_length=2)] = (1, 2, 3, 5)  # of the width, one a level
    residual_blocks: Positive = 2  # a level
    attention_levels: tuple[int, ...] = (1, 2, 3)  # level i works at 1 / 2**i of the size
    head_width: Positive = 32
    prediction: Literal["noise", "velocity"] = "noise"  # what the UNet's last layer says; the graph answers with noise


class VaeConfig(_Config):
    """AudioLDM's mel VAE. Latents are divided by `scale_factor` before they are decoded."""

    width: Positive = 128
    multipliers: tuple[Positive, ...] = (1, 2, 4)
    residual_blocks: Positive = 2
    scale_factor: float = Field(default=0.9227, gt=0)


class VocoderConfig(_Config):
    """HiFi-GAN at 16 kHz; the product of the upsampling rates is the hop, 160."""

    width: Positive = 1_024
    upsample_rates: tuple[Positive, ...] = (5, 4, 2, 2, 2)
    upsample_kernels: tuple[Positive, ...] = (16, 16, 8, 4, 4)
    resblock_kernels: tuple[Positive, ...] = (3, 7, 11)
    resblock_dilations: tuple[Positive, ...] = (1, 3, 5)


class SamplingDefaults(_Config):
    """What a request gets that does not say otherwise."""

    sampler: Literal["ddim", "dpm++"] = "dpm++"
    steps: Annotated[int, Field(ge=1, le=1000)] = 25
    guidance: Annotated[float, Field(ge=1.0, le=100.0)] = 3.5


class Source(_Config):
    """Where weights came from: an official file, or a seed."""

    name: str
    sha256: str | None = None


class Manifest(_Config):
    """`manifest.json` of a bundle."""

    schema_version: Literal[1] = 1
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")

    optical_flow: FlowConfig = OpticalFlowConfig()
    rgb_features: FeaturesConfig = FeaturesConfig()
    flow_features: FeaturesConfig = FeaturesConfig()
    video2rms: Video2RMSConfig = Video2RMSConfig()
    clap_text: ClapTextConfig = ClapTextConfig()
    clap_audio: ClapAudioConfig = ClapAudioConfig()
    denoiser: DenoiserConfig = DenoiserConfig()
    vae_decoder: VaeConfig = VaeConfig()
    vocoder: VocoderConfig = VocoderConfig()

    sampling: SamplingDefaults = SamplingDefaults()
    sources: tuple[Source, ...] = ()
    files: dict[str, str] = Field(default_factory=dict)  # path inside the bundle -> sha256

    @property
    def features_width(self) -> int:
        """Columns of the features that Video2RMS reads: RGB, then flow."""
        return self.rgb_features.width + self.flow_features.width
