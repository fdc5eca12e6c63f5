"""Hand-set weights for an untrained Video2RMS, so that its envelope follows visible impacts.

With random weights the predicted envelope is noise. These weights detect what a hit looks like: the frame features
change fast, then stop. Nothing is fitted to any sound; a trained bundle does not use this module.

    features -> difference of neighbours, both signs -> speed -> speed before minus speed after: impact
             -> LSTM with fixed gates, an identity -> decay, 30 to 125 Hz -> nearest loudness class
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from foley import clip
from foley_export.networks.bn_inception import RgbFeatures
from foley_export.networks.video2rms import Video2RMS

IMPACT_GAIN, MOTION_GAIN = 0.5, 0.02  # contributions of a sudden stop and of steady motion to the loudness
DECAY_S = 0.12  # time constant of the loudness after an impact
REFERENCE_SPEED_PX = 16  # pixels per frame: the speed that is normalised to 1
MAX_LEVEL = 0.6  # highest class used, as a fraction of all: an RMS of 0.18, noise with peaks near full scale
GATE_BIAS = 12.0  # bias that holds an LSTM gate open; negated, closed


@torch.no_grad()
def wire(network: Video2RMS, rgb_features: RgbFeatures) -> None:
    """Set the hand-made weights of `network` in place, for features computed by `rgb_features`."""
    for parameter in network.parameters():
        parameter.zero_()
    encoder: Any = network.encoder
    differences, speed, impact = encoder.convolutions
    for _, normalisation in encoder.convolutions:
        normalisation.running_mean.zero_()
        normalisation.running_var.fill_(1 - normalisation.eps)
        normalisation.weight.fill_(1.0)

    centre = differences[0].conv.kernel_size[0] // 2
    width = rgb_features.stage.outputs[0].shape[-1]
    assert isinstance(width, int)
    for i in range(width):
        differences[0].conv.weight[i, i, centre - 1 : centre + 1] = torch.tensor([-1.0, 1.0])
        differences[0].conv.weight[width + i, i, centre - 1 : centre + 1] = torch.tensor([1.0, -1.0])
    still, moving = calibrate(rgb_features)
    speed[0].conv.weight[0, :, centre] = 1 / (moving - still)
    speed[0].conv.bias[0] = -still / (moving - still)
    impact[0].conv.weight[0, 0, [centre - 2, centre - 1, centre + 1, centre + 2]] = torch.tensor([0.5, 0.5, -0.5, -0.5])
    impact[0].conv.weight[1, 0, centre] = 1.0

    hidden = encoder.BiLSTM.hidden_size
    for layer in range(encoder.BiLSTM.num_layers):
        weights = getattr(encoder.BiLSTM, f"weight_ih_l{layer}")
        biases = getattr(encoder.BiLSTM, f"bias_ih_l{layer}")
        in_gate, forget_gate, cell, out_gate = (slice(i * hidden, (i + 1) * hidden) for i in range(4))
        biases[in_gate], biases[forget_gate], biases[out_gate] = GATE_BIAS, -GATE_BIAS, GATE_BIAS
        weights[cell][0, :2] = torch.tensor([IMPACT_GAIN, MOTION_GAIN]) if layer == 0 else torch.tensor([1.0, 0.0])

    along_time, along_features = encoder.BiLSTM_projs
    along_time.weight.copy_(decay_weights())
    # the level v nearest to x maximises x v - v**2 / 2; the constant keeps the logits positive under the ReLU
    levels = torch.linspace(0, 1, len(along_features.bias))
    levels = levels[levels <= MAX_LEVEL]
    along_features.weight[: len(levels), 0] = levels
    along_features.bias[: len(levels)] = 1 - levels**2 / 2


def decay_weights() -> Tensor:
    """Return the weights of feature rows in later class frames, [1250, 300]; zero for rows at the clip edges."""
    since_s = np.arange(clip.CLIP_CLASSES)[:, None] / clip.CLASS_RATE_HZ
    since_s = since_s - (np.arange(clip.CLIP_FRAMES) + 1) / clip.FRAME_RATE_HZ  # row 0 is the second frame's
    attack = np.clip(1 + since_s * clip.FRAME_RATE_HZ, 0, 1)
    kernel = attack * np.exp(-np.maximum(since_s, 0) / DECAY_S)
    kernel[:, :4] = kernel[:, -4:] = 0  # convolutions pad with zeros; the jump at the edges is not an impact
    return torch.from_numpy(kernel.astype(np.float32))


@torch.no_grad()
def calibrate(rgb_features: RgbFeatures) -> tuple[float, float]:
    """Return the summed absolute change of the features: camera noise alone, and a ball at the reference speed."""
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[: clip.FRAME_HEIGHT, : clip.FRAME_WIDTH]

    def picture(x: float) -> np.ndarray:
        ball = np.hypot(rows - 128, columns - x) < 20
        background = 60 + 0.2 * columns + 120 * ball
        noise = random.normal(0, 2, (*background.shape, 3))
        return np.clip(background[..., None] + noise, 0, 255).astype(np.uint8)

    # the first frame of a chunk yields no features
    frames = np.stack([picture(150), picture(150), picture(150), picture(150 + REFERENCE_SPEED_PX)])
    before, still, moved = rgb_features(torch.from_numpy(frames))
    return (still - before).abs().sum().item(), (moved - still).abs().sum().item()
