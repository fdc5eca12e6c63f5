"""What an engine is built for: a pure function of the manifest, so that it is known without a GPU."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from foley import clip
from foley.bundle import Half, graph_file
from foley.manifest import Manifest
from foley.stages import Stage, Tensor, networks

Profile = Literal["latency", "throughput"]
"""Which shapes an engine is tuned for; both run all shapes of the contract. "latency": one request at a time, and the
builder tries everything; "throughput": full batches."""

WORKSPACE_BYTES = 8 * 2**30
_SHORT_TEXT = 16  # tokens: what a prompt has


@dataclass(frozen=True)
class Shapes:
    """The smallest, usual and largest shape of an input."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


@dataclass(frozen=True)
class EnginePlan:
    """How the engine of a network is built.

    Attributes:
        graph: path of the ONNX graph inside the bundle; the precision is in it.
        shapes: of every input, by name: one optimisation profile.
        optimization_level: TensorRT's, 0 to 5: how much the builder tries.
        workspace_bytes: the most memory that a layer may take for itself.
        refit: whether new weights of the same graph can be put into the engine, which takes seconds, not minutes.
    """

    stage: str
    graph: str
    shapes: Mapping[str, Shapes]
    optimization_level: int
    workspace_bytes: int = WORKSPACE_BYTES
    refit: bool = True


def engine_plans(manifest: Manifest, precision: Half, profile: Profile) -> dict[str, EnginePlan]:
    """The plan of every network of the bundle that `manifest` describes, by stage."""
    return {
        name: EnginePlan(
            name,
            graph_file(name, precision),
            {tensor.name: _shapes(stage, tensor, manifest, profile) for tensor in stage.inputs},
            optimization_level=5 if profile == "latency" else 3,
        )
        for name, stage in networks(manifest).items()
    }


def _shapes(stage: Stage, tensor: Tensor, manifest: Manifest, profile: Profile) -> Shapes:
    sizes = [_sizes(size, stage, manifest, profile) for size in stage.shape(tensor)]
    smallest, usual, largest = zip(*sizes, strict=True)
    return Shapes(smallest, usual, largest)


def _sizes(size: int | str, stage: Stage, manifest: Manifest, profile: Profile) -> tuple[int, int, int]:
    """The smallest, usual and largest size of a dimension."""
    match size:
        case "batch":
            return 1, 1 if profile == "latency" else stage.max_batch, stage.max_batch
        case "frames":
            return 2, clip.CHUNK_PAIRS + 1, clip.CHUNK_PAIRS + 1
        case "pairs":
            return 1, clip.CHUNK_PAIRS, clip.CHUNK_PAIRS
        case "tokens":
            return 1, min(_SHORT_TEXT, manifest.clap_text.max_tokens), manifest.clap_text.max_tokens
        case int():
            return size, size, size
    raise ValueError(f"{stage.name} has a dimension {size!r} that no engine is planned for")
