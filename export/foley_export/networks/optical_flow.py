"""Optical flow of a video: RAFT for a sequence of frames.

Teed & Deng, "RAFT" (ECCV 2020), with the state-dict names of torchvision's `raft_large`. Same results with less work:
every frame is encoded once although two pairs share it, the context's contribution to the recurrent units is
computed once, and only the last update is upsampled to full resolution.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from foley import clip
from foley.manifest import Manifest, OpticalFlowConfig
from foley_export.networks.network import Network
from foley_export.networks.raft_correlation import CorrelationPyramid
from foley_export.networks.raft_encoder import REDUCTION, Encoder
from foley_export.networks.raft_update import PreparedGRU, UpdateBlock

_NEIGHBOURS = 9  # a full-resolution pixel is a weighted mean of its grid point and the eight around it


class OpticalFlow(Network):
    """Frames uint8 [n+1, 256, 344, 3] (RGB) -> flow uint8 [n, 256, 344, 2] from each frame to the next.

    Maps (x, y) of -20 to 20 pixels to 0 to 255; larger values are clamped, fractions truncated.
    """

    stage_name = "optical_flow"

    def __init__(self, manifest: Manifest) -> None:
        super().__init__(manifest)
        config = manifest.optical_flow
        assert isinstance(config, OpticalFlowConfig)  # with DIS the stage is not a network
        self.hidden_width = config.hidden_width
        self.updates = config.updates
        self.feature_encoder = Encoder(config.encoder_widths, nn.InstanceNorm2d)
        self.context_encoder = Encoder(config.encoder_widths, nn.BatchNorm2d)
        self.correlation = CorrelationPyramid(config.correlation_levels, config.correlation_radius)
        self.update_block = UpdateBlock(config, self.correlation.width)
        self.mask_predictor = MaskPredictor(config.hidden_width, config.head_width)

    @staticmethod
    def checkpoint_key(key: str) -> str:
        """Return the official checkpoint's key for `key`."""
        return key

    def flow(self, frames: Tensor) -> Tensor:
        """Return the flow float [n, 2, 256, 344] in pixels, (x, y), between frames uint8 [n+1, 256, 344, 3]."""
        pairs = self.encode_pairs(frames)
        estimate = pairs.initial_estimate()
        for _ in range(self.updates):
            estimate = self.update(pairs, estimate)
        return self.upsample(estimate)

    def encode_pairs(self, frames: Tensor) -> "Pairs":
        """Encode the n pairs of consecutive frames in `frames` [n+1, 256, 344, 3]: all inputs of the updates."""
        images = frames.permute(0, 3, 1, 2) / 127.5 - 1
        features = self.feature_encoder(images)
        hidden, context = self.context_encoder(images[:-1]).tensor_split([self.hidden_width], 1)
        return Pairs(
            self.correlation.build(features[:-1], features[1:]),
            hidden.tanh(),
            self.update_block.prepare(context.relu()),
        )

    def update(self, pairs: "Pairs", estimate: "Estimate") -> "Estimate":
        """Run one update for all `pairs`."""
        correlation = self.correlation.lookup(pairs.pyramid, _pixel_grid(estimate.flow) + estimate.flow)
        hidden, change = self.update_block(estimate.hidden, pairs.prepared, correlation, estimate.flow)
        return Estimate(hidden, estimate.flow + change)

    def upsample(self, estimate: "Estimate") -> Tensor:
        """Upsample the flow to full resolution, in pixels: [n, 2, 256, 344]."""
        return _upsample(estimate.flow, self.mask_predictor(estimate.hidden))

    def forward(self, frames: Tensor) -> Tensor:
        """Return the flow uint8 [n, 256, 344, 2]."""
        flow = self.flow(frames).clamp(-clip.LARGEST_FLOW, clip.LARGEST_FLOW)
        levels = (flow + clip.LARGEST_FLOW) * (255 / (2 * clip.LARGEST_FLOW))
        return levels.permute(0, 2, 3, 1).to(torch.uint8)


class OpticalFlowWarm(OpticalFlow):
    """RAFT with warm starts: within a chain of consecutive pairs, each pair starts from the flow of the previous pair.

    Needs fewer updates, because motion changes little within 1/30 s. Chains are short so that errors do not accumulate,
    many chains run as one batch, and calls stay independent of each other.
    """

    stage_name = "optical_flow_warm"

    def __init__(self, manifest: Manifest) -> None:
        super().__init__(manifest)
        config = manifest.optical_flow
        assert isinstance(config, OpticalFlowConfig)
        self.chain = config.chain
        self.first_updates, self.warm_updates = config.first_updates, config.warm_updates

    def flow(self, frames: Tensor) -> Tensor:
        """Return the flow float [n, 2, 256, 344] in pixels, (x, y), between frames uint8 [n+1, 256, 344, 3]."""
        found: list[Estimate] = []
        for pairs in self.encode_pairs(frames).chains(self.chain):  # first pairs of all chains, then second pairs, ...
            estimate = pairs.initial_estimate()
            if found:
                estimate = estimate._replace(flow=found[-1].flow)
            for _ in range(self.warm_updates if found else self.first_updates):
                estimate = self.update(pairs, estimate)
            found.append(estimate)
        in_order = Estimate(
            *(torch.stack(nth, 1).flatten(0, 1)[: frames.shape[0] - 1] for nth in zip(*found, strict=True))
        )
        return self.upsample(in_order)


class Estimate(NamedTuple):
    """The recurrent state between updates."""

    hidden: Tensor  # [n, hidden, h, w]
    flow: Tensor  # [n, 2, h, w], in feature grid units (8 pixels)


class Pairs(NamedTuple):
    """Encoded inputs of the updates for n pairs of images."""

    pyramid: Tensor
    hidden: Tensor  # before the first update
    prepared: list[PreparedGRU]

    def initial_estimate(self) -> Estimate:
        """Return the initial estimate: zero flow."""
        return Estimate(self.hidden, torch.zeros_like(self.hidden[:, :2]))

    def chains(self, length: int) -> list["Pairs"]:
        """Split the pairs into chains of `length`: the first pairs of all chains, then the second pairs, and so on.

        If the pairs do not fill the last chain, its last pair is repeated.
        """
        count = self.hidden.shape[0]
        indices = torch.arange((count + length - 1) // length * length, device=self.hidden.device)
        indices = torch.where(indices < count, indices, count - 1).unflatten(0, (-1, length))

        def select(nth: int) -> "Pairs":
            rows = indices[:, nth]
            prepared = [
                gru._replace(
                    gate_context=gru.gate_context.index_select(0, rows),
                    candidate_context=gru.candidate_context.index_select(0, rows),
                )
                for gru in self.prepared
            ]
            return Pairs(self.pyramid.index_select(0, rows), self.hidden.index_select(0, rows), prepared)

        return [select(nth) for nth in range(length)]


class MaskPredictor(nn.Module):
    """Hidden state [n, hidden, h, w] -> scores [n, 9, 64, h, w]: 9 neighbours for each of a grid point's 64 pixels."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.convrelu = nn.Sequential(nn.Conv2d(hidden, width, 3, padding=1), nn.ReLU())
        self.conv = nn.Conv2d(width, _NEIGHBOURS * REDUCTION**2, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the scores [n, 9, 64, h, w]."""
        scores = 0.25 * self.conv(self.convrelu(hidden))  # scaled as in training
        return scores.unflatten(1, (_NEIGHBOURS, REDUCTION**2))


def _pixel_grid(features: Tensor) -> Tensor:
    """Return the (x, y) coordinates of the feature grid [n, C, h, w]: [1, 2, h, w]."""
    rows = torch.arange(features.shape[2], dtype=features.dtype, device=features.device)
    columns = torch.arange(features.shape[3], dtype=features.dtype, device=features.device)
    return torch.stack(torch.meshgrid(columns, rows, indexing="xy"))[None]


def _upsample(flow: Tensor, scores: Tensor) -> Tensor:
    """Upsample with RAFT's convex combination: flow [n, 2, h, w], `scores` [n, 9, 64, h, w] -> [n, 2, 8 * h, 8 * w]."""
    height, width = flow.shape[2:]
    padded = functional.pad(REDUCTION * flow, (1, 1, 1, 1))
    neighbours = [padded[:, :, y : y + height, x : x + width] for y in range(3) for x in range(3)]
    weights = scores.softmax(1)
    pixels = (torch.stack(neighbours, 2).unsqueeze(3) * weights.unsqueeze(1)).sum(2)
    return functional.pixel_shuffle(pixels.flatten(1, 2), REDUCTION)
