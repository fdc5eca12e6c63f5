"""Training data of Video2RMS: features of whole clips, computed once by the trained networks, and their loudness."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from foley import clip, envelope
from foley.bars import track
from foley.envelope_filter import low_pass
from foley.manifest import DisFlowConfig
from foley_export.networks.bn_inception import FlowFeatures, RgbFeatures
from foley_training.data.scene import Split, make_scene
from foley_training.data.sound import synthesise
from foley_training.videos import PAIRS, network_inputs

_BATCH = 46  # pairs


@dataclass(frozen=True)
class FeatureRows:
    """Features and loudness of `n` clips of 10 s."""

    features: npt.NDArray[np.float16]  # [n, 299, width], RGB then flow
    rms: npt.NDArray[np.float32]  # [n, 1250], low-passed, linear


@torch.no_grad()
def feature_rows(
    folder: Path, split: Split, clips: int, config: DisFlowConfig, rgb: RgbFeatures, flow: FlowFeatures
) -> FeatureRows:
    """Return the first `clips` clips of a split, read from `folder`, or computed and cached there.

    The networks must be on one device; the features are computed on it.
    """
    paths = {name: folder / f"{split}-{clips}-{name}.npy" for name in ("features", "rms")}
    if not all(path.is_file() for path in paths.values()):
        for network in (rgb.network, flow.network):
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # twice as fast on a CPU
        device = rgb.mean.device
        features, rms = [], []
        for i in track(range(clips), "features"):
            scene = make_scene(split, i)
            rms.append(loudness(synthesise(scene)))
            images = list(network_inputs(scene, config, np.arange(PAIRS)))
            rows = []
            for first in range(0, PAIRS, _BATCH):
                frames, flows = (np.stack(part) for part in zip(*images[first : first + _BATCH], strict=True))
                bgr = torch.from_numpy(frames).to(device).flip(-1).permute(0, 3, 1, 2).float() - rgb.mean
                motion = torch.from_numpy(flows).to(device).permute(0, 3, 1, 2).float() - 128
                rows.append(torch.cat([rgb.network(bgr), flow.network(motion)], 1).half().cpu().numpy())
            features.append(np.concatenate(rows))
        for name, arrays in (("features", features), ("rms", rms)):
            with paths[name].open("wb") as file:
                np.save(file, np.stack(arrays))
    return FeatureRows(*(np.load(path) for path in paths.values()))


def loudness(waveform: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the target of Video2RMS, [1250]: low-passed RMS 512/128 of the 10 s (section III-A of the paper)."""
    rms = envelope.measure(waveform[: round(clip.CLIP_SECONDS * clip.SAMPLE_RATE_HZ)], 512, 128)
    return np.maximum(low_pass(rms), 0).astype(np.float32)
