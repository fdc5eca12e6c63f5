"""The state dict of every module has the keys and shapes of the official checkpoints."""

import pytest
import torch

from foley_export.networks.bn_inception import FlowFeatures, RgbFeatures
from foley_export.networks.clap_audio import ClapAudio
from foley_export.networks.clap_text import ClapText
from foley_export.networks.denoiser import Denoiser
from foley_export.networks.optical_flow import OpticalFlow
from foley_export.networks.vae_decoder import VaeDecoder
from foley_export.networks.vae_encoder import VaeEncoder
from foley_export.networks.video2rms import Video2RMS
from foley_export.networks.vocoder import Vocoder
from foley_export.presets import PAPER

RMS2SOUND = "rms2sound.json.gz"
EMA = "rms2sound_ema.json.gz"  # read by test_import_keys.py
CLAP, VAE = "cond_stage_models.0.model.", "first_stage_model."

# module -> (file that lists its keys, prefixes of the module's keys in that file)
OFFICIAL_PARTS = {
    OpticalFlow: ("raft_large.json", ("",)),
    RgbFeatures: ("bn_inception.json", ("",)),
    FlowFeatures: ("bn_inception.json", ("",)),
    Video2RMS: ("video2rms.json", ("",)),
    ClapText: (RMS2SOUND, (f"{CLAP}text_branch.", f"{CLAP}text_projection.")),
    ClapAudio: (RMS2SOUND, (f"{CLAP}audio_branch.", f"{CLAP}audio_projection.")),
    Denoiser: (RMS2SOUND, ("model.diffusion_model.",)),
    VaeDecoder: (RMS2SOUND, (f"{VAE}post_quant_conv.", f"{VAE}decoder.")),
    VaeEncoder: (RMS2SOUND, (f"{VAE}quant_conv.", f"{VAE}encoder.")),
    Vocoder: (RMS2SOUND, (f"{VAE}vocoder.",)),
}
# HTSAT's classifier heads, which the embedding does not use, and buffers that the exported graph computes itself
UNUSED = tuple(
    f"{CLAP}audio_branch.{part}" for part in ("tscam_conv.", "head.", "spectrogram_extractor.", "logmel_extractor.")
)
COMPUTED = ".attn_mask"


@pytest.mark.parametrize("module", OFFICIAL_PARTS)
def test_state_dict_matches_official_checkpoint(module, checkpoint_keys):
    with torch.device("cpu" if module in (ClapText, ClapAudio) else "meta"):  # the constructor of CLAP reads tensors
        ours = module(PAPER)
    shapes = {module.checkpoint_key(key): list(ours.checkpoint_shape(key)) for key in ours.state_dict()}
    file, prefixes = OFFICIAL_PARTS[module]
    official = {
        key: entry["shape"]
        for key, entry in checkpoint_keys(file).items()
        if key.startswith(prefixes) and not key.startswith(UNUSED) and not key.endswith(COMPUTED)
    }
    assert shapes == official


def test_flow_features_match_flow_checkpoint(checkpoint_keys):
    with torch.device("meta"):
        ours = FlowFeatures(PAPER)
    shapes = {ours.checkpoint_key(key): list(tensor.shape) for key, tensor in ours.state_dict().items()}
    assert shapes == {key: entry["shape"] for key, entry in checkpoint_keys("bn_inception_flow.json").items()}


def test_every_key_list_is_used(reference):
    read = {file for file, _ in OFFICIAL_PARTS.values()} | {"bn_inception_flow.json", EMA}
    assert {path.name for path in (reference / "checkpoint_keys").iterdir()} == read
