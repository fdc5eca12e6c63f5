"""Base classes of the exported networks, used by weight filling, export and verification."""

from abc import ABC, abstractmethod
from operator import attrgetter
from typing import ClassVar

import torch

from foley.manifest import Manifest
from foley.stages import Stage, Tensor, stages

_TORCH_DTYPES = {"uint8": torch.uint8, "int32": torch.int32, "int64": torch.int64, "float32": torch.float32}


class OfficialModule(torch.nn.Module, ABC):
    """A torch module that maps its weights to the keys and shapes of the official checkpoints."""

    @staticmethod
    @abstractmethod
    def checkpoint_key(key: str) -> str:
        """Return the official checkpoint's key for this module's state-dict key (see `shared/reference`)."""

    def checkpoint_shape(self, key: str) -> tuple[int, ...]:
        """Return the shape in the official checkpoint of the tensor with state-dict `key`."""
        return tuple(self.tensor(key).shape)

    def from_checkpoint(self, key: str, tensor: torch.Tensor) -> torch.Tensor:
        """Return the official checkpoint's `tensor` in the shape of this module's state-dict `key`."""
        return tensor.reshape(self.tensor(key).shape)

    def tensor(self, key: str) -> torch.Tensor:
        """Return the parameter or buffer with this state-dict key, without building the whole state dict."""
        found: torch.Tensor = attrgetter(key)(self)
        return found


class Network(OfficialModule):
    """A torch module whose `forward` takes and returns its stage's tensors, in their order.

    Subclasses are built from a whole `Manifest`, because a stage's tensors depend on neighbouring stages, and set
    `stage_name`. A bundle stores their weights as `networks/<stage>.safetensors`.
    """

    stage_name: ClassVar[str]
    full_precision: ClassVar[frozenset[str]] = frozenset()
    """Names of the modules that stay in float32, with their submodules, in half precision (see `precision`)."""

    def __init__(self, manifest: Manifest) -> None:
        super().__init__()
        self.stage: Stage = stages(manifest)[self.stage_name]

    def for_gpu(self) -> None:
        """Prepare for export to GPUs: shapes must not depend on values, because CUDA graphs cannot capture that."""

    def sample_inputs(
        self, batch: int = 2, lengths: dict[str, int] | None = None, seed: int = 0
    ) -> tuple[torch.Tensor, ...]:
        """Return random inputs with the stage's shapes.

        Floats are standard normal, bytes uniform, integers one (a valid token, mask and timestep).

        Args:
            batch: Number of rows.
            lengths: Sizes of the other dynamic dimensions by name; 3 by default.
            seed: Seed of the random numbers.
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
