"""Training: numerics match reference libraries, runs resume, and stages learn."""

import copy
from pathlib import Path

import librosa
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from foley import clip
from foley.errors import SettingError
from foley_export.mel import log_mel, mel_magnitudes
from foley_export.networks.clap_frontend import LogMel
from foley_export.presets import TINY
from foley_export.tokenizer import train_tokenizer
from foley_training.config import LoopConfig, TrainingConfig, read_config
from foley_training.data.scene import make_scene
from foley_training.feature_rows import loudness
from foley_training.group_norm import use_fast_group_norm
from foley_training.loop import Pass, Task, load_trained, train
from foley_training.run import STAGES, Run, train_stage
from foley_training.sounds import ClapFrontend, Sounds, sounds
from foley_training.stages.clap import Clap, sentences
from foley_training.stages.diffusion import mel_loudness
from foley_training.stages.vae import Vae
from foley_training.stages.video2rms import interpolation
from foley_training.stages.vocoder import VocoderTask
from foley_training.videos import PAIRS, dynamics

CPU = torch.device("cpu")


def test_log_mel_matches_librosa():
    wave = np.random.default_rng(0).standard_normal(16_000).astype(np.float32) * 0.1
    margin = (1024 - clip.HOP) // 2
    padded = np.pad(wave, margin, mode="reflect")
    magnitude = np.abs(librosa.stft(padded, n_fft=1024, hop_length=clip.HOP, center=False))
    filters = librosa.filters.mel(sr=16_000, n_fft=1024, n_mels=64, fmin=0, fmax=8_000)
    expected = np.log(np.maximum(filters @ magnitude, 1e-5)).T
    np.testing.assert_allclose(log_mel(torch.from_numpy(wave)[None])[0].numpy(), expected, atol=1e-4)


def test_mel_loudness_follows_rms():
    envelope = 0.02 + 0.2 * np.abs(np.sin(np.arange(64_000) / 9_000))
    wave = (envelope * np.random.default_rng(0).standard_normal(64_000)).astype(np.float32)
    measured = mel_loudness(log_mel(torch.from_numpy(wave)[None])[0]).numpy()
    rms = librosa.feature.rms(y=wave, frame_length=1024, hop_length=clip.HOP)[0][: len(measured)]
    assert np.corrcoef(measured, rms)[0, 1] > 0.95


def test_fft_front_end_matches_exported_log_mel():
    wave = torch.from_numpy(np.random.default_rng(0).standard_normal((2, clip.PADDED_SAMPLES)).astype(np.float32))
    frontend = ClapFrontend()
    expected = LogMel()(frontend.upsample(wave)[:, :480_000])
    torch.testing.assert_close(frontend(wave), expected, atol=5e-3, rtol=0)


@given(groups=st.sampled_from((1, 2, 4)), offset=st.floats(-5, 5), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_fast_group_norm_matches_pytorch(groups, offset, seed):
    torch.manual_seed(seed)
    theirs = nn.GroupNorm(groups, 8)
    nn.init.normal_(theirs.weight)
    nn.init.normal_(theirs.bias)
    ours = nn.Sequential(copy.deepcopy(theirs))
    use_fast_group_norm(ours)
    x = torch.randn(3, 8, 6, 5, dtype=torch.float32) + offset
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    gradient = torch.randn_like(x)
    expected, found = theirs(a), ours(b)
    expected.backward(gradient)
    found.backward(gradient)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(b.grad, a.grad, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours[0].weight.grad, theirs.weight.grad, atol=1e-3, rtol=1e-3)


def test_interpolation_preserves_lines():
    times = (np.arange(PAIRS) + 1) / clip.FRAME_RATE_HZ
    values = interpolation().numpy() @ np.append(3 * times + 1, 99.0)  # the last row is unused
    expected = 3 * np.arange(clip.CLIP_CLASSES) / clip.CLASS_RATE_HZ + 1
    inside = slice(5, -5)  # no data before the first frame and after the last
    np.testing.assert_allclose(values[inside], expected[inside], atol=1e-4)


def test_dynamics_mark_next_and_previous_contact():
    scene = make_scene("train", 1)
    found = dynamics(scene)
    assert found.shape == (PAIRS, 9)
    assert found.min() >= 0
    assert found.max() <= 1
    for contact in scene.contacts:
        row = round(contact.start_s * clip.FRAME_RATE_HZ) - 1
        assert max(found[row - 1 : row + 2, 5]) > 0.8  # the next contact is here
        assert max(found[row - 1 : row + 2, 7]) > 0.8  # so is the previous contact


def test_loudness_is_low_passed_rms():
    wave = np.zeros(clip.PADDED_SAMPLES, np.float32)
    wave[40_000:80_000] = 0.2 * np.sign(np.sin(np.arange(40_000)))
    found = loudness(wave)
    assert found.shape == (clip.CLIP_CLASSES,)
    assert found.min() >= 0
    np.testing.assert_allclose(found[340:600], 0.2, atol=2e-3)
    np.testing.assert_allclose(found[700:], 0, atol=2e-3)


class Line(Task[torch.Tensor]):
    """A task that learns one number."""

    name = "line"

    def __init__(self, stop_at: int | None = None) -> None:
        super().__init__()
        self.value = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.value.weight)
        self.networks = nn.ModuleDict({"value": self.value})
        self.passes = [Pass(self.value, self.losses)]
        self.steps, self.stop_at = 0, stop_at

    def batch(self, random: np.random.Generator) -> torch.Tensor:
        self.steps += 1
        if self.steps == self.stop_at:
            raise KeyboardInterrupt
        return torch.from_numpy(random.standard_normal((8, 1)).astype(np.float32))

    def losses(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        noise = 0.1 * torch.randn(len(batch), 1)
        return {"square": (self.value(batch) - 3 * batch + noise).square().mean()}


def test_resumed_run_matches_uninterrupted_run(tmp_path, monkeypatch):
    config = LoopConfig(steps=60, batch=8, learning_rate=0.2, warm_up=5)
    uninterrupted = Line()
    train(uninterrupted, config, 0, tmp_path / "whole", CPU)
    monkeypatch.setattr("foley_training.loop.CHECKPOINT_EVERY_S", 0.0)
    with pytest.raises(KeyboardInterrupt):
        train(Line(stop_at=31), config, 0, tmp_path / "parts", CPU)
    resumed = Line()
    train(resumed, config, 0, tmp_path / "parts", CPU)
    assert resumed.steps == 30
    assert resumed.value.weight.item() == uninterrupted.value.weight.item()
    assert uninterrupted.value.weight.item() == pytest.approx(3, abs=0.5)

    loaded = Line()
    assert load_trained(loaded, tmp_path / "parts")
    assert loaded.value.weight.item() == resumed.value.weight.item()
    assert not load_trained(loaded, tmp_path / "nothing")


@pytest.fixture(scope="module")
def small_dataset(tmp_path_factory: pytest.TempPathFactory) -> Sounds:
    folder = tmp_path_factory.mktemp("sounds")
    made, read = (sounds(folder, "validation", 2) for _ in range(2))
    np.testing.assert_array_equal(made.mels, read.mels)
    return read


@pytest.mark.long  # a minute of training
def test_vae_learns(small_dataset, tmp_path):
    config = LoopConfig(steps=12, batch=2, learning_rate=3e-3, warm_up=2)
    task = Vae(TINY, config, small_dataset, small_dataset)
    batch = task.batch(np.random.default_rng(0))
    before = float(task.losses(batch)["error"].detach())
    train(task, config, 0, tmp_path, CPU)
    assert float(task.losses(batch)["error"].detach()) < before


@pytest.mark.long  # a minute of training
def test_vocoder_learns_and_folding_preserves_its_output(small_dataset, tmp_path):
    config = LoopConfig(steps=12, batch=2, learning_rate=3e-3, warm_up=2)
    task = VocoderTask(TINY, config, small_dataset, small_dataset)
    task.progress = 1.0  # with discriminators
    batch = task.batch(np.random.default_rng(0))
    losses = task.generator_losses(batch)
    assert {"mel", "loud", "loudness", "spectrum", "feature_matching", "adversarial"} == losses.keys()
    train(task, config, 0, tmp_path, CPU)
    assert float(task.generator_losses(batch)["mel"].detach()) < float(losses["mel"].detach())

    learned = mel_magnitudes(task.sound(batch.mel))
    for vocoder in (task.folded(), task.folded()):
        torch.testing.assert_close(mel_magnitudes(vocoder(batch.mel)), learned, atol=1e-4, rtol=1e-3)


def test_empty_text_matches_no_sound(small_dataset):
    config = LoopConfig(steps=1, batch=64)
    task = Clap(TINY, config, train_tokenizer(sentences(20), TINY.clap_text), small_dataset, small_dataset)
    batch = task.batch(np.random.default_rng(0))
    empty = batch.attention_mask.sum(1) == batch.attention_mask.sum(1).min()
    assert 1 <= empty.sum() < 20
    assert (batch.text_labels[empty] == -1).all()
    assert (batch.text_labels[~empty] == batch.audio_labels[~empty]).all()
    assert np.isfinite(sum(float(loss.detach()) for loss in task.losses(batch).values()))


def test_stage_is_deterministic_for_a_seed(tmp_path):
    loops = dict.fromkeys(STAGES, LoopConfig(steps=1, batch=2))
    counts = {"sounds": 2, "videos": 1, "pictured_videos": 1, "validation": 2, "validation_videos": 1}
    run = Run(TrainingConfig(preset="tiny", **counts, **loops), tmp_path, CPU)
    weights = []
    for _ in range(2):
        train_stage(run, "vae")
        checkpoint = tmp_path / "vae.pt"
        weights.append(torch.load(checkpoint, weights_only=True)["networks"])
        checkpoint.unlink()
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=0)


def test_committed_configuration_has_every_stage(repository):
    config = read_config(repository / "training" / "demo.yaml")
    assert all(isinstance(getattr(config, stage), LoopConfig) for stage in STAGES)


@pytest.mark.parametrize("text", ["preset: demo", "[1, 2", "nonsense: 1", "\x00"])
def test_rejects_invalid_configuration(tmp_path: Path, text: str):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(SettingError, match=r"run\.yaml"):
        read_config(path)
