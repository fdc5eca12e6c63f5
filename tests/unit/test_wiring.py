"""The wired, untrained bundle is loud when the stick hits and scratches, on clips it was not tuned on."""

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from foley import clip
from foley.media import read_frames
from foley_export.networks.bn_inception import RgbFeatures
from foley_export.networks.video2rms import Video2RMS
from foley_export.presets import TINY
from foley_export.weights import fill
from foley_export.wiring import wire
from foley_pipeline.video2rms import clip_features


@pytest.fixture(scope="module")
def renderer(repository: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("render_drumstick", repository / "examples" / "render_drumstick.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.long)])
def test_wired_network_is_loud_at_the_contacts(renderer: ModuleType, tmp_path: Path, seed: int) -> None:
    seconds = 5.0
    video = tmp_path / "clip.mp4"
    renderer.render(video, seconds, seed)
    rgb_features, network = fill(RgbFeatures(TINY)), fill(Video2RMS(TINY))
    wire(network, rgb_features)
    frames = np.stack([*read_frames(video)])
    with torch.inference_mode():
        rgb = rgb_features(torch.from_numpy(np.concatenate([frames, frames[-1:]]))).numpy()
        rows = np.concatenate([rgb, np.zeros_like(rgb)], axis=1)
        envelope = network(torch.from_numpy(clip_features(rows[:-1], rows[-1]))[None])[0][0].numpy()

    times = np.arange(round(seconds * clip.ENVELOPE_RATE_HZ)) / clip.ENVELOPE_RATE_HZ
    sounding = np.zeros(len(times), bool)
    for hit in renderer.hits(seed, seconds):
        sounding |= (times >= hit.time_s) & (times < hit.time_s + hit.length_s + 0.25)
    envelope = envelope[: len(times)]
    assert envelope[sounding].mean() > 1.3 * envelope[~sounding].mean()
