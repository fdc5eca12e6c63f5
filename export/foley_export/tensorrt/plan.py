"""What an engine is built for: a pure function of the manifest, so that it is known without a GPU."""

from collections.abc import Mapping
from dataclasses import dataclass

from foley import clip
from foley.bundle import Half, Tuning, graph_file
from foley.manifest import Manifest
from foley.stages import Stage, Tensor, networks

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


def engine_plans(manifest: Manifest, precision: Half, tuning: Tuning) -> dict[str, EnginePlan]:
    """The plan of every network of the bundle that `manifest` describes, by stage.

    Tuned for either, an engine runs all shapes of the contract; for "latency" the builder tries everything.
    """
    return {
        name: EnginePlan(
            name,
            graph_file(name, precision),
            {tensor.name: _shapes(stage, tensor, manifest, tuning) for tensor in stage.inputs},
            optimization_level=5 if tuning == "latency" else 3,
        )
        for name, stage in networks(manifest).items()
    }


def _shapes(stage: Stage, tensor: Tensor, manifest: Manifest, tuning: Tuning) -> Shapes:
    sizes = [_sizes(size, stage, manifest, tuning) for size in stage.shape(tensor)]
    smallest, usual, largest = zip(*sizes, strict=True)
    return Shapes(smallest, usual, largest)


def _sizes(size: int | str, stage: Stage, manifest: Manifest, tuning: Tuning) -> tuple[int, int, int]:
    """The smallest, usual and largest size of a dimension."""
    match size:
        case "batch":
            return 1, 1 if tuning == "latency" else stage.max_batch, stage.max_batch
        case "frames":
            return 2, clip.CHUNK_PAIRS + 1, clip.CHUNK_PAIRS + 1
        case "pairs":
            return 1, clip.CHUNK_PAIRS, clip.CHUNK_PAIRS
        case "tokens":
            return 1, min(_SHORT_TEXT, manifest.clap_text.max_tokens), manifest.clap_text.max_tokens
        case int():
            return size, size, size
    raise ValueError(f"{stage.name} has a dimension {size!r} that no engine is planned for")
