"""Engines on disk: where each lies, what it was built of, and whether it may be used again.

An engine only runs on the kind of GPU and the TensorRT that built it, and only means what its graph means. Beside it
lies a JSON file, written last, that says all this.
"""

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from foley.bundle import ENGINES, Bundle, file_sha256, weights_file
from foley.errors import BundleError
from foley_export.tensorrt.plan import EnginePlan

Decision = Literal["reuse", "refit", "build"]


class Origin(BaseModel):
    """What an engine was built of, and where."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    gpu: str  # its name
    compute_capability: str
    tensorrt: str
    graph_sha256: str  # of the ONNX file, which names the weights but does not hold them
    weights_sha256: str
    plan: dict[str, Any]
    engine_sha256: str = ""  # of the engine itself, once it is there


def timing_cache_file(bundle: Bundle, compute_capability: str, tensorrt: str) -> Path:
    """Where the times of kernels on this kind of GPU are kept, from one build to the next."""
    return bundle.path(ENGINES) / f"timing-sm{compute_capability.replace('.', '')}-{tensorrt}.cache"


def origin(bundle: Bundle, plan: EnginePlan, gpu: str, compute_capability: str, tensorrt: str) -> Origin:
    """What an engine would be built of now.

    Raises:
        BundleError: the bundle has no such graph.
    """
    graph = bundle.path(plan.graph)
    if plan.graph not in bundle.manifest.files or not graph.is_file():
        raise BundleError(f"{bundle.root} has no {plan.graph}: `foley-export onnx --precision` makes it")
    # hashed again rather than read from the manifest: what is built is what lies there
    return Origin(
        gpu=gpu,
        compute_capability=compute_capability,
        tensorrt=tensorrt,
        graph_sha256=file_sha256(graph),
        weights_sha256=file_sha256(bundle.path(weights_file(plan.stage))),
        plan=_plain(plan),
    )


def decide(engine: Path, wanted: Origin) -> tuple[Decision, str]:
    """Whether the engine there is what is wanted, can be made so with new weights, or has to be built; and why."""
    try:
        found = Origin.model_validate_json(sidecar(engine).read_bytes())
    except FileNotFoundError:
        return "build", "there is none yet"
    except (OSError, ValidationError):
        return "build", f"{sidecar(engine)} cannot be read"
    if not engine.is_file() or file_sha256(engine) != found.engine_sha256:
        return "build", f"{engine} is damaged"
    for what, ours, theirs in (
        ("GPU", wanted.gpu, found.gpu),
        ("compute capability", wanted.compute_capability, found.compute_capability),
        ("TensorRT", wanted.tensorrt, found.tensorrt),
    ):
        if ours != theirs:
            return "build", f"it was built for {what} {theirs}, this is {ours}"
    if wanted.plan != found.plan:
        return "build", "it was built for other shapes or settings"
    if wanted.graph_sha256 != found.graph_sha256:
        return "build", "its graph has changed"
    if wanted.weights_sha256 == found.weights_sha256:
        return "reuse", "nothing has changed"
    return ("refit", "only its weights have changed") if found.plan["refit"] else ("build", "its weights have changed")


def sidecar(engine: Path) -> Path:
    """The file that says what an engine was built of."""
    return engine.with_name(engine.name + ".json")


def write(engine: Path, content: bytes, made_of: Origin) -> None:
    """Put an engine there, whole, and last the file that vouches for it."""
    engine.parent.mkdir(parents=True, exist_ok=True)
    sidecar(engine).unlink(missing_ok=True)
    complete = made_of.model_copy(update={"engine_sha256": hashlib.sha256(content).hexdigest()})
    for path, data in ((engine, content), (sidecar(engine), complete.model_dump_json(indent=2).encode())):
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_bytes(data)
        temporary.replace(path)


def _plain(plan: EnginePlan) -> dict[str, Any]:
    """The plan as JSON gives it back: lists, no tuples."""
    shapes = {name: {key: list(value) for key, value in asdict(one).items()} for name, one in plan.shapes.items()}
    return {**asdict(plan), "shapes": shapes}
