"""CLAP's two encoders against the official implementation, at the official size."""

import pytest
import torch
from torch.nn import functional

from foley.manifest import Manifest
from foley_export.networks.clap_audio import ClapAudio
from foley_export.networks.clap_text import ClapText
from foley_export.weights import fill

PAPER = Manifest(name="paper")
TOLERANCE = 1e-4  # relative L2 error

# What the official state dict holds beyond the network that makes the embedding: HTSAT's classifier
# heads, and front-end constants that our graph computes itself
UNUSED = ("tscam_conv.", "head.", "spectrogram_extractor.", "logmel_extractor.")
OFFICIAL_PARTS = {ClapText: "text", ClapAudio: "audio"}


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.inference_mode():
        yield


@pytest.mark.parametrize("network", OFFICIAL_PARTS)
def test_state_dict_is_the_official_one(network, checkpoint_keys):
    ours = network(PAPER)
    shapes = {network.checkpoint_key(key): list(ours.checkpoint_shape(key)) for key in ours.state_dict()}
    prefix = f"cond_stage_models.0.model.{OFFICIAL_PARTS[network]}"
    unused = tuple(f"{prefix}_branch.{part}" for part in UNUSED)
    official = {
        key: entry["shape"]
        for key, entry in checkpoint_keys("rms2sound.json.gz").items()
        if key.startswith((f"{prefix}_branch.", f"{prefix}_projection."))
        and not key.startswith(unused)
        and not key.endswith(".attn_mask")  # shifted windows' masks are computed too
    }
    assert shapes == official


@pytest.fixture(scope="module")
def text() -> ClapText:
    return fill(ClapText(PAPER))


def test_text_embedding(text, vector, relative_error):
    arrays = vector("clap_text")
    ids, mask = torch.from_numpy(arrays["input_ids"]), torch.from_numpy(arrays["attention_mask"])
    assert relative_error(text(ids, mask), arrays["embedding"]) <= TOLERANCE


def test_text_padding_does_not_matter(text, vector, relative_error):
    arrays = vector("clap_text")
    ids, mask = torch.from_numpy(arrays["input_ids"]), torch.from_numpy(arrays["attention_mask"])
    padding = (0, int(arrays["padded_length"]) - ids.shape[1])
    padded = text(functional.pad(ids, padding, value=1), functional.pad(mask, padding))
    assert relative_error(padded, arrays["embedding"]) <= TOLERANCE
    for row, length in enumerate(mask.sum(1)):
        alone = text(ids[row : row + 1, :length], mask[row : row + 1, :length])
        assert relative_error(alone[0], arrays["embedding"][row]) <= TOLERANCE


@pytest.fixture(scope="module")
def audio() -> ClapAudio:
    return fill(ClapAudio(PAPER))


@pytest.fixture
def waveform(vector) -> torch.Tensor:
    return torch.from_numpy(vector("clap_audio")["waveform"]).float()[None]


def test_audio_resampling(audio, waveform, vector, relative_error):
    official = vector("clap_audio")["resampled_48k_head"]
    assert relative_error(audio.upsample(waveform)[0, : len(official)], official) <= TOLERANCE


def test_audio_spectrogram(audio, waveform, vector, relative_error):
    official = vector("clap_audio")["logmel_48k_every_8th_frame"]
    assert relative_error(audio.spectrogram(waveform)[0, ::8], official) <= TOLERANCE


def test_audio_embedding(audio, waveform, vector, relative_error):
    assert relative_error(audio(waveform), vector("clap_audio")["embedding"][0]) <= TOLERANCE
