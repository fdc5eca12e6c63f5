"""The manifest of a bundle: the configuration of every network, the sampling defaults, and the files.

A bundle is a folder; its `manifest.json` is the JSON form of `Manifest`. Presets differ only in these numbers; the
defaults are the official sizes (preset `paper`).
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from foley.errors import SettingError
from foley.options import Sampler, SamplingOptions

Positive = Annotated[int, Field(gt=0)]


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class OpticalFlowConfig(_Config):
    """RAFT (torchvision's `raft_large` by default). Widths are numbers of channels.

    Attributes:
        hidden_width: Width of the recurrent state; the context has the remaining channels of the encoder's last width.
        head_width: Width of the hidden layers of the flow head and of the mask predictor.
        chain: Frame pairs in a chain of `optical_flow_warm`; all but the first start from the flow of the previous one.
        first_updates: Maximum number of updates for the first pair of a chain in `optical_flow_warm`.
        warm_updates: Maximum number of updates for the other pairs.
    """

    encoder_widths: tuple[Positive, Positive, Positive, Positive, Positive] = (64, 64, 96, 128, 256)
    hidden_width: Positive = 128
    correlation_levels: Positive = 4
    correlation_radius: Positive = 4
    motion_correlation_widths: tuple[Positive, Positive] = (256, 192)
    motion_flow_widths: tuple[Positive, Positive] = (128, 64)
    motion_width: Positive = 128
    head_width: Positive = 256
    updates: Positive = 12
    chain: Positive = 4
    first_updates: Positive = 6
    warm_updates: Positive = 2


class DisFlowConfig(_Config):
    """OpenCV's DIS in place of RAFT: no network, and real-time on a laptop (see `foley.dis_flow`).

    Attributes:
        preset: OpenCV's name of the preset.
    """

    preset: Literal["ultrafast", "fast", "medium"] = "fast"


def _flow_method(optical_flow: Any) -> str:
    """Return the tag of a flow configuration; RAFT's has no tag field because it predates DIS."""
    is_dis = isinstance(optical_flow, DisFlowConfig) or (isinstance(optical_flow, dict) and "preset" in optical_flow)
    return "dis" if is_dis else "raft"


FlowConfig = Annotated[
    Annotated[OpticalFlowConfig, Tag("raft")] | Annotated[DisFlowConfig, Tag("dis")], Discriminator(_flow_method)
]


class FeaturesConfig(_Config):
    """BN-Inception.

    Attributes:
        width_divisor: Divisor of every number of channels.
    """

    width_divisor: Literal[1, 2, 4, 8, 16, 32] = 1

    @property
    def width(self) -> int:
        """Number of channels of the pooled feature vector: 1024 at full width."""
        return 1024 // self.width_divisor


class Video2RMSConfig(_Config):
    """Video2RMS: Conv1d blocks, a bidirectional LSTM, and two linear layers along time and features.

    Attributes:
        lstm_width: Width of the LSTM in each direction.
        classes: Number of loudness classes.
    """

    convolutions: Positive = 3
    kernel: Positive = 5
    lstm_layers: Positive = 2
    lstm_width: Positive = 512
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
    """HTSAT (tiny by default) and CLAP's projection.

    Attributes:
        width: Width of the first stage; it doubles with each stage.
    """

    width: Positive = 96
    depths: tuple[Positive, Positive, Positive, Positive] = (2, 2, 6, 2)
    heads: tuple[Positive, Positive, Positive, Positive] = (4, 8, 16, 32)


class DenoiserConfig(_Config):
    """AudioLDM's UNet (S by default) and the RMS-ControlNet, a copy of its encoder.

    Attributes:
        multipliers: Multipliers of the width, one per resolution level.
        residual_blocks: Residual blocks per level.
        attention_levels: Levels with attention; level i has 1 / 2**i of the resolution.
        prediction: What the UNet's last layer predicts; the graph always returns noise.
    """

    width: Positive = 128
    multipliers: Annotated[tuple[Positive, ...], Field(min_length=2)] = (1, 2, 3, 5)
    residual_blocks: Positive = 2
    attention_levels: tuple[int, ...] = (1, 2, 3)
    head_width: Positive = 32
    prediction: Literal["noise", "velocity"] = "noise"


class VaeConfig(_Config):
    """AudioLDM's mel VAE.

    Attributes:
        scale_factor: Divisor of the latents before decoding.
    """

    width: Positive = 128
    multipliers: tuple[Positive, ...] = (1, 2, 4)
    residual_blocks: Positive = 2
    scale_factor: float = Field(default=0.9227, gt=0)


class VocoderConfig(_Config):
    """HiFi-GAN at 16 kHz; the product of the upsampling rates is the hop length, 160."""

    width: Positive = 1_024
    upsample_rates: tuple[Positive, ...] = (5, 4, 2, 2, 2)
    upsample_kernels: tuple[Positive, ...] = (16, 16, 8, 4, 4)
    resblock_kernels: tuple[Positive, ...] = (3, 7, 11)
    resblock_dilations: tuple[Positive, ...] = (1, 3, 5)


class SamplingDefaults(_Config):
    """Sampling settings for requests and profiles that do not set them."""

    sampler: Sampler = "dpm++"
    steps: int = 25
    guidance: float = 3.5

    @model_validator(mode="after")
    def _check_ranges(self) -> "SamplingDefaults":
        try:
            SamplingOptions.model_validate(self.model_dump())
        except SettingError as error:
            raise ValueError(str(error)) from error
        return self


class Source(_Config):
    """Origin of weights: an official file, or a seed."""

    name: str
    sha256: str | None = None


class Manifest(_Config):
    """`manifest.json` of a bundle.

    Attributes:
        sources: Origins of the weights.
        files: SHA-256 of each file, by path inside the bundle.
    """

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
    files: dict[str, str] = Field(default_factory=dict)

    @property
    def features_width(self) -> int:
        """Number of columns of Video2RMS' input features: RGB, then flow."""
        return self.rgb_features.width + self.flow_features.width
