"""Presets: named manifests that differ in sizes only."""

from foley.manifest import (
    ClapAudioConfig,
    ClapTextConfig,
    DenoiserConfig,
    DisFlowConfig,
    FeaturesConfig,
    Manifest,
    OpticalFlowConfig,
    SamplingDefaults,
    VaeConfig,
    Video2RMSConfig,
    VocoderConfig,
)

PAPER = Manifest(name="paper")
"""The official sizes."""

TINY = Manifest(
    name="tiny",
    optical_flow=OpticalFlowConfig(
        encoder_widths=(8, 8, 12, 16, 32),
        hidden_width=16,
        correlation_levels=2,
        correlation_radius=2,
        motion_correlation_widths=(16, 12),
        motion_flow_widths=(8, 8),
        motion_width=16,
        head_width=16,
        updates=2,
    ),
    rgb_features=FeaturesConfig(width_divisor=32),
    flow_features=FeaturesConfig(width_divisor=32),
    video2rms=Video2RMSConfig(lstm_width=32),
    clap_text=ClapTextConfig(vocabulary=512, max_tokens=128, width=32, layers=2, heads=2, feed_forward_width=64),
    clap_audio=ClapAudioConfig(width=16, depths=(1, 1, 1, 1), heads=(1, 2, 4, 8)),
    denoiser=DenoiserConfig(width=16, multipliers=(1, 2, 3), residual_blocks=1, attention_levels=(2,), head_width=16),
    vae_decoder=VaeConfig(width=16, residual_blocks=1),
    vocoder=VocoderConfig(width=64, resblock_kernels=(3, 7)),
    sampling=SamplingDefaults(steps=10),
)
"""Runs in seconds instead of minutes; for tests and experiments."""

DEMO = Manifest(
    name="demo",
    optical_flow=DisFlowConfig(),
    rgb_features=FeaturesConfig(width_divisor=8),
    flow_features=FeaturesConfig(width_divisor=8),
    video2rms=Video2RMSConfig(lstm_width=64),
    clap_text=ClapTextConfig(vocabulary=512, max_tokens=128, width=128, layers=2, heads=4, feed_forward_width=256),
    clap_audio=ClapAudioConfig(width=24, depths=(1, 1, 2, 1), heads=(2, 4, 8, 16)),
    denoiser=DenoiserConfig(
        width=32,
        multipliers=(1, 2, 3),
        residual_blocks=1,
        attention_levels=(2,),
        head_width=32,
        prediction="velocity",
    ),
    vae_decoder=VaeConfig(width=16, residual_blocks=1),
    vocoder=VocoderConfig(width=256, resblock_kernels=(3, 7)),
    sampling=SamplingDefaults(guidance=1.0),  # half the compute of guided sampling; envelopes are followed as closely
)
"""Small enough to be trained on a laptop's CPU and to ship with the project (see `training/`)."""

PRESETS: dict[str, Manifest] = {preset.name: preset for preset in (PAPER, DEMO, TINY)}
