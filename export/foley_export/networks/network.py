"""What every exported network answers, so that filling, export and checks follow from it."""

from abc import ABC, abstractmethod
from operator import attrgetter
from typing import ClassVar

import torch

from foley.manifest import Manifest
from foley.stages import Stage, Tensor, stages

_TORCH_DTYPES = {"uint8": torch.uint8, "int32": torch.int32, "int64": torch.int64, "float32": torch.float32}


class OfficialModule(torch.nn.Module, ABC):
    """A torch module that knows how the official checkpoints name and store its weights."""

    @staticmethod
    @abstractmethod
    def checkpoint_key(key: str) -> str:
        """The official checkpoint's key for this module's state-dict key (see `reference/`)."""

    def checkpoint_shape(self, key: str) -> tuple[int, ...]:
        """The shape that the official checkpoint gives to this module's state-dict `key`."""
        return tuple(self.tensor(key).shape)

    def from_checkpoint(self, key: str, tensor: torch.Tensor) -> torch.Tensor:
        """The official checkpoint's `tensor` in the shape that this module's state-dict `key` has."""
        return tensor.reshape(self.tensor(key).shape)

    def tensor(self, key: str) -> torch.Tensor:
        """The parameter or buffer with this state-dict key; a state dict of them all would be slow to ask for one."""
        found: torch.Tensor = attrgetter(key)(self)
        return found


class Network(OfficialModule):
    """A torch module whose `forward` takes and returns its stage's tensors, in their order.

    Subclasses are built from a whole `Manifest` (contracts depend on neighbouring stages) and name
    their stage. Their weights are what the bundle stores as `networks/<stage>.safetensors`.
    """

    stage_name: ClassVar[str]
    full_precision: ClassVar[frozenset[str]] = frozenset()
    """Names of the modules, with all below them, that half precision leaves in float32 (see `precision`)."""

    def __init__(self, manifest: Manifest) -> None:
        super().__init__()
        self.stage: Stage = stages(manifest)[self.stage_name]

    def for_gpu(self) -> None:
        """Prepare for a graph that runs on GPUs: its shapes must not depend on values, or no CUDA graph holds it."""

    def sample_inputs(
        self, batch: int = 2, lengths: dict[str, int] | None = None, seed: int = 0
    ) -> tuple[torch.Tensor, ...]:
        """Random inputs of the right shapes: `batch` rows, varying dimensions as in `lengths` (default 3).

        Floats are standard normal, bytes uniform, integers one (a valid token, mask and timestep).
        """
        generator = torch.Generator().manual_seed(seed)
        sizes = {"batch": batch, **(lengths or {})}

        def sample(tensor: Tensor) -> torch.Tensor:
            shape = [sizes.get(n, 3) if isinstance(n, str) else n for n in self.stage.shape(tensor)]
            dtype = _TORCH_DTYPES[tensor.dtype]
            if dtype.is_floating_point:
                return torch.randn(shape, generator=generator, dtype=dtype)
            if dtype == torch.uint8:
                return torch.randint(0, 256, shape, generator=generator, dtype=dtype)
            return torch.ones(shape, dtype=dtype)

        return tuple(sample(tensor) for tensor in self.stage.inputs)
