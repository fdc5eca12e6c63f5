"""RAFT update block: motion encoder, SepConvGRU, flow head."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from foley.manifest import OpticalFlowConfig


class UpdateBlock(nn.Module):
    """One RAFT update. `prepare` processes the inputs that are the same in all updates."""

    def __init__(self, config: OpticalFlowConfig, correlation_width: int) -> None:
        super().__init__()
        context = config.encoder_widths[-1] - config.hidden_width
        self.motion_encoder = MotionEncoder(config, correlation_width)
        self.recurrent_block = RecurrentBlock(config.hidden_width, context, config.motion_width)
        self.flow_head = FlowHead(config.hidden_width, config.head_width)

    def prepare(self, context: Tensor) -> list["PreparedGRU"]:
        """Convert the context [n, context, h, w] to the form that `forward` takes."""
        grus: Iterable[Any] = self.recurrent_block.children()
        return [gru.prepare(context) for gru in grus]

    def forward(
        self, hidden: Tensor, prepared: list["PreparedGRU"], correlation: Tensor, flow: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the next hidden state [n, hidden, h, w] and the flow update [n, 2, h, w]."""
        motion = self.motion_encoder(flow, correlation)
        for gru in prepared:
            hidden = gru.step(hidden, motion)
        return hidden, self.flow_head(hidden)


class MotionEncoder(nn.Module):
    """Flow [n, 2, h, w] and its correlations -> motion features [n, motion_width, h, w]; the last 2 are the flow."""

    def __init__(self, config: OpticalFlowConfig, correlation_width: int) -> None:
        super().__init__()
        corr1, corr2 = config.motion_correlation_widths
        flow1, flow2 = config.motion_flow_widths
        self.convcorr1 = _conv_relu(correlation_width, corr1, 1)
        self.convcorr2 = _conv_relu(corr1, corr2, 3)
        self.convflow1 = _conv_relu(2, flow1, 7)
        self.convflow2 = _conv_relu(flow1, flow2, 3)
        self.conv = _conv_relu(corr2 + flow2, config.motion_width - 2, 3)

    def forward(self, flow: Tensor, correlation: Tensor) -> Tensor:
        """Return the motion features."""
        features = [self.convcorr2(self.convcorr1(correlation)), self.convflow2(self.convflow1(flow))]
        return torch.cat([self.conv(torch.cat(features, 1)), flow], 1)


class RecurrentBlock(nn.Module):
    """SepConvGRU: a ConvGRU along rows, then one along columns."""

    def __init__(self, hidden: int, context: int, motion: int) -> None:
        super().__init__()
        self.convgru1 = ConvGRU(hidden, context, motion, (1, 5))
        self.convgru2 = ConvGRU(hidden, context, motion, (5, 1))


class ConvGRU(nn.Module):
    """A convolutional GRU over (hidden state, context, motion)."""

    def __init__(self, hidden: int, context: int, motion: int, kernel: tuple[int, int]) -> None:
        super().__init__()
        self.widths = [hidden, context, motion]
        self.padding = (kernel[0] // 2, kernel[1] // 2)
        self.convz = nn.Conv2d(sum(self.widths), hidden, kernel)
        self.convr = nn.Conv2d(sum(self.widths), hidden, kernel)
        self.convq = nn.Conv2d(sum(self.widths), hidden, kernel)

    def prepare(self, context: Tensor) -> "PreparedGRU":
        """Precompute the context's contribution to the convolutions, which is the same in every update."""
        convolutions = (self.convz, self.convr, self.convq)
        hidden, shared, motion = torch.cat([conv.weight for conv in convolutions]).split(self.widths, 1)
        bias = torch.cat([conv.bias for conv in convolutions if conv.bias is not None])
        gates = [2 * self.widths[0], self.widths[0]]
        gate_weight, candidate_weight = torch.cat([hidden, motion], 1).split(gates)
        gate_context, candidate_context = functional.conv2d(context, shared, bias, padding=self.padding).split(gates, 1)
        return PreparedGRU(gate_weight, candidate_weight, gate_context, candidate_context, self.padding)


class PreparedGRU(NamedTuple):
    """A ConvGRU with precomputed context; update and reset gate are fused into one convolution."""

    gate_weight: Tensor
    candidate_weight: Tensor
    gate_context: Tensor
    candidate_context: Tensor
    padding: tuple[int, int]

    def step(self, hidden: Tensor, motion: Tensor) -> Tensor:
        """Return the next hidden state [n, hidden, h, w]."""
        inputs = torch.cat([hidden, motion], 1)
        gates = functional.conv2d(inputs, self.gate_weight, padding=self.padding) + self.gate_context
        update, reset = gates.sigmoid().chunk(2, 1)
        inputs = torch.cat([reset * hidden, motion], 1)
        candidate = functional.conv2d(inputs, self.candidate_weight, padding=self.padding) + self.candidate_context
        return (1 - update) * hidden + update * candidate.tanh()


class FlowHead(nn.Module):
    """Hidden state [n, hidden, h, w] -> flow update [n, 2, h, w]."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(hidden, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, 2, 3, padding=1)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the flow update [n, 2, h, w]."""
        return self.conv2(functional.relu(self.conv1(hidden)))


def _conv_relu(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2), nn.ReLU())
