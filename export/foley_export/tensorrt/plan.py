"""Build settings of the engines, as a pure function of the manifest; known without a GPU."""

from collections.abc import Mapping
from dataclasses import dataclass

from foley import clip
from foley.bundle import Half, Tuning, graph_file
from foley.manifest import Manifest
from foley.stages import Stage, Tensor, networks

WORKSPACE_BYTES = 8 * 2**30
_SHORT_TEXT = 16  # tokens of a typical prompt


@dataclass(frozen=True)
class Shapes:
    """The minimum, optimum and maximum shape of an input."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


@dataclass(frozen=True)
class EnginePlan:
    """How the engine of a network is built.

    Attributes:
        stage: Name of the network's stage.
        graph: Path of the ONNX graph inside the bundle; it determines the precision.
        shapes: Shapes of every input by name: one optimisation profile.
        optimization_level: TensorRT's builder optimisation level, 0 to 5.
        workspace_bytes: Maximum workspace memory of a layer.
        refit: Whether the engine is refittable: new weights in seconds, not minutes.
    """

    stage: str
    graph: str
    shapes: Mapping[str, Shapes]
    optimization_level: int
    workspace_bytes: int = WORKSPACE_BYTES
    refit: bool = True


def engine_plans(manifest: Manifest, precision: Half, tuning: Tuning) -> dict[str, EnginePlan]:
    """Return the plan of every network of the bundle that `manifest` describes, by stage.

    With either tuning an engine accepts all shapes of its stage; "latency" uses the highest optimisation level.
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
    """Return the minimum, optimum and maximum size of a dimension."""
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
    raise ValueError(f"{stage.name} has an unknown dynamic dimension {size!r}")
