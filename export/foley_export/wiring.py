"""An untrained Video2RMS that still keeps time: weights wired by hand, not learned.

With random weights the predicted envelope is noise. Here the same layers listen for what a hit looks like: the
picture's features change fast, then stop. Nothing is fitted to any sound; a trained bundle replaces it.

    features -> difference of neighbours, both signs -> speed -> speed before minus after: impact
             -> LSTM with fixed gates, which passes it on -> decay, 30 to 125 Hz -> nearest loudness class
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from foley import clip
from foley_export.networks.bn_inception import RgbFeatures
from foley_export.networks.video2rms import Video2RMS

IMPACT, MOTION = 0.5, 0.02  # what a sudden stop and what steady motion add to the loudness
DECAY_S = 0.12  # of the loudness after an impact
FAST = 16  # pixels between two frames: the speed that counts as one
LOUDEST = 0.6  # of the classes, as a share: an RMS of 0.18, noise with peaks near full scale
GATE = 12.0  # bias that holds an LSTM gate open, or with a minus shut


@torch.no_grad()
def wire(network: Video2RMS, rgb_features: RgbFeatures) -> None:
    """Give `network` its wired weights, in place, for features that come from `rgb_features`."""
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
        biases[in_gate], biases[forget_gate], biases[out_gate] = GATE, -GATE, GATE
        weights[cell][0, :2] = torch.tensor([IMPACT, MOTION]) if layer == 0 else torch.tensor([1.0, 0.0])

    along_time, along_features = encoder.BiLSTM_projs
    along_time.weight.copy_(decay())
    # nearest of the levels v: the largest of  x v - v**2 / 2;  the constant keeps it positive under the ReLU
    levels = torch.linspace(0, 1, len(along_features.bias))
    levels = levels[levels <= LOUDEST]
    along_features.weight[: len(levels), 0] = levels
    along_features.bias[: len(levels)] = 1 - levels**2 / 2


def decay() -> Tensor:
    """What every feature row adds to every class frame after it, [1250, 300]; the rows at the clip's edges nothing."""
    since_s = np.arange(clip.CLIP_CLASSES)[:, None] / clip.CLASS_RATE_HZ
    since_s = since_s - (np.arange(clip.CLIP_FRAMES) + 1) / clip.FRAME_RATE_HZ  # row 0 belongs to the second frame
    rising = np.clip(1 + since_s * clip.FRAME_RATE_HZ, 0, 1)
    kernel = rising * np.exp(-np.maximum(since_s, 0) / DECAY_S)
    kernel[:, :4] = kernel[:, -4:] = 0  # beyond the edge are zeros, and a jump from them is no impact
    return torch.from_numpy(kernel.astype(np.float32))


@torch.no_grad()
def calibrate(rgb_features: RgbFeatures) -> tuple[float, float]:
    """How much the features change, summed, when only the camera's noise does, and when a ball moves by `FAST`."""
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[: clip.FRAME_HEIGHT, : clip.FRAME_WIDTH]

    def picture(x: float) -> np.ndarray:
        ball = np.hypot(rows - 128, columns - x) < 20
        shade = 60 + 0.2 * columns + 120 * ball
        noise = random.normal(0, 2, (*shade.shape, 3))
        return np.clip(shade[..., None] + noise, 0, 255).astype(np.uint8)

    # the first frame of a chunk has no row of its own
    frames = np.stack([picture(150), picture(150), picture(150), picture(150 + FAST)])
    before, still, moved = rgb_features(torch.from_numpy(frames))
    return (still - before).abs().sum().item(), (moved - still).abs().sum().item()
