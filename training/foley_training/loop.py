"""The training loop shared by all stages: resumable, reproducible, logged.

Every step seeds its batch and its noise by (seed, stage, step), so an interrupted run continues as if it had not been
interrupted.
"""

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar
from zlib import crc32

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from foley.bars import Bars
from foley_training.config import LoopConfig

Batch = TypeVar("Batch")
Losses = Mapping[str, Tensor]
"""Named terms whose sum is minimised."""

CHECKPOINT_EVERY_S = 120.0
LOG_EVERY_S = 20.0
_EMA_DECAY = 0.999


@dataclass(frozen=True)
class Pass(Generic[Batch]):
    """One optimiser update within a step: the network that is updated and the losses on the batch."""

    network: nn.Module
    losses: Callable[[Batch], Losses]
    betas: tuple[float, float] = (0.9, 0.99)


class Task(nn.Module, ABC, Generic[Batch]):
    """The training task of one stage.

    Checkpoints contain `networks` and nothing else. A task is a module itself, so that `to` also moves the frozen
    networks and the buffers that a step uses.

    Attributes:
        name: Name of the stage.
        progress: Fraction of the steps that are done; set by the loop.
        networks: The trained networks.
        passes: The optimiser updates of a step, in order.
    """

    name: str
    progress: float = 0.0
    networks: nn.ModuleDict
    passes: list[Pass[Batch]]

    @property
    def device(self) -> torch.device:
        """The device of the networks."""
        return next(self.networks.parameters()).device

    @abstractmethod
    def batch(self, random: np.random.Generator) -> Batch:
        """Return one batch on the task's device, drawn from `random`."""

    def validate(self) -> dict[str, float]:
        """Return validation metrics; called with the averaged weights. Empty by default."""
        return {}


def train(task: Task[Any], config: LoopConfig, seed: int, folder: Path, device: torch.device) -> None:
    """Train `task` on `device` up to `config.steps` steps, resuming from its checkpoint if there is one.

    Writes `<name>.pt` (checkpoint) and `<name>.jsonl` (log) in `folder`. Afterwards `task.networks` holds the averaged
    weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    networks = task.to(device).networks
    averaged = AveragedModel(networks, multi_avg_fn=_average, use_buffers=True)
    optimisers = [
        torch.optim.AdamW(one.network.parameters(), config.learning_rate, one.betas, weight_decay=1e-3, fused=True)
        for one in task.passes
    ]
    checkpoint, log = folder / f"{task.name}.pt", folder / f"{task.name}.jsonl"
    first, spent_s = _resume(checkpoint, networks, averaged, optimisers)
    stage = crc32(task.name.encode())
    meter = _Meter()
    started = saved = time.monotonic()
    networks.train()
    with _progress() as progress:
        bar = progress.add_task(task.name, total=config.steps, completed=first)
        for step in range(first, config.steps):
            random = np.random.default_rng([seed, stage, step])
            torch.manual_seed(int(random.integers(2**31)))
            task.progress = step / config.steps
            batch = task.batch(random)
            rate = float(config.learning_rate * _schedule(step, config))
            for optimiser, one in zip(optimisers, task.passes, strict=True):
                meter.add(_update(optimiser, one, batch, rate, device))
            averaged.update_parameters(networks)
            progress.update(bar, completed=step + 1, description=f"{task.name}: {meter.latest}")
            now, last = time.monotonic(), step + 1 == config.steps
            if last or now - meter.since > LOG_EVERY_S:
                entry = {"step": step + 1, "seconds": round(spent_s + now - started, 1), **meter.take()}
                if last or (config.validate_every and (step + 1) // config.validate_every > meter.validated):
                    meter.validated = (step + 1) // config.validate_every if config.validate_every else 0
                    entry |= _validate(task, networks, averaged)
                with log.open("a") as file:
                    file.write(json.dumps(entry) + "\n")
            if last or now - saved > CHECKPOINT_EVERY_S:
                seconds = spent_s + time.monotonic() - started
                _save(checkpoint, step + 1, seconds, networks, averaged, optimisers)
                saved = now
    networks.load_state_dict(averaged.get_submodule("module").state_dict())
    networks.eval()


def load_trained(task: Task[Any], folder: Path) -> bool:
    """Load the averaged weights of the checkpoint, finished or not, into `task.networks`.

    Returns:
        False if there is no checkpoint.
    """
    path = folder / f"{task.name}.pt"
    if not path.is_file():
        return False
    task.networks.load_state_dict(torch.load(path, "cpu", weights_only=True)["averaged"])
    task.networks.eval()
    return True


@torch.no_grad()
def _average(averaged: Sequence[Tensor], current: Sequence[Tensor], updates: Tensor | int) -> None:
    """Exponential moving average whose decay grows at first, so that the earliest weights do not persist in it."""
    decay = min(_EMA_DECAY, (1 + int(updates)) / (10 + int(updates)))
    for mean, value in zip(averaged, current, strict=True):
        if mean.is_floating_point():
            mean.lerp_(value, 1 - decay)
        else:
            mean.copy_(value)


def _update(
    optimiser: torch.optim.Optimizer, one: Pass[Any], batch: Any, rate: float, device: torch.device
) -> dict[str, float]:
    for group in optimiser.param_groups:
        group["lr"] = rate
    optimiser.zero_grad(set_to_none=True)
    with torch.autocast(device.type, torch.bfloat16):
        losses = one.losses(batch)
    if not losses:
        return {}
    sum(losses.values(), torch.zeros((), device=device)).backward()
    norm = nn.utils.clip_grad_norm_(one.network.parameters(), 1.0)
    if torch.isfinite(norm):  # skip steps whose gradients overflowed
        optimiser.step()
    return {name: float(loss.detach()) for name, loss in losses.items()}


def _schedule(step: int, config: LoopConfig) -> float:
    """Return the factor of the learning rate: linear warm-up, then half a cosine down to 0.01."""
    warm_up = min(1.0, (step + 1) / config.warm_up)
    return warm_up * (0.01 + 0.99 * 0.5 * (1 + np.cos(np.pi * step / config.steps)))


def _validate(task: Task[Any], networks: nn.ModuleDict, averaged: AveragedModel) -> dict[str, float]:
    """Return the metrics of the averaged weights; the networks' current weights are restored afterwards."""
    current = {key: value.clone() for key, value in networks.state_dict().items()}
    networks.load_state_dict(averaged.get_submodule("module").state_dict())
    networks.eval()
    with torch.no_grad():
        figures = task.validate()
    networks.load_state_dict(current)
    networks.train()
    return figures


def _save(
    path: Path, step: int, seconds: float, networks: nn.Module, averaged: AveragedModel, optimisers: list[Any]
) -> None:
    temporary = path.with_suffix(".tmp")
    torch.save(
        {
            "step": step,
            "seconds": seconds,
            "networks": networks.state_dict(),
            "averaged": averaged.get_submodule("module").state_dict(),
            "updates": averaged.n_averaged,
            "optimisers": [optimiser.state_dict() for optimiser in optimisers],
        },
        temporary,
    )
    temporary.replace(path)


def _resume(path: Path, networks: nn.Module, averaged: AveragedModel, optimisers: list[Any]) -> tuple[int, float]:
    """Restore the checkpoint, if there is one; return the steps done and the seconds spent."""
    if not path.is_file():
        return 0, 0.0
    saved = torch.load(path, "cpu", weights_only=True)
    networks.load_state_dict(saved["networks"])
    averaged.get_submodule("module").load_state_dict(saved["averaged"])
    averaged.n_averaged.copy_(saved["updates"])
    for optimiser, state in zip(optimisers, saved["optimisers"], strict=True):
        optimiser.load_state_dict(state)
    return saved["step"], saved["seconds"]


class _Meter:
    """Running means of the losses since the last `take`."""

    def __init__(self) -> None:
        self.sums: dict[str, list[float]] = {}
        self.since = time.monotonic()
        self.validated = 0

    def add(self, losses: dict[str, float]) -> None:
        for name, value in losses.items():
            self.sums.setdefault(name, []).append(value)

    @property
    def latest(self) -> str:
        return " ".join(f"{name} {values[-1]:.3f}" for name, values in self.sums.items())

    def take(self) -> dict[str, float]:
        means = {name: round(float(np.mean(values)), 5) for name, values in self.sums.items()}
        self.sums.clear()
        self.since = time.monotonic()
        return means


def _progress() -> Bars:
    return Bars(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
