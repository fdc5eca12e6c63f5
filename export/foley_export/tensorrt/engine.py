"""Engines on disk: file names, origin, and whether an engine can be reused.

An engine runs only on the GPU model and the TensorRT version that built it, and is valid only for its graph. A JSON
sidecar file, written after the engine, records all of these.
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
    """The inputs and the environment that an engine was built from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    gpu: str  # name of the GPU
    compute_capability: str
    tensorrt: str
    graph_sha256: str  # of the ONNX file, which refers to the weights but does not contain them
    weights_sha256: str
    plan: dict[str, Any]
    engine_sha256: str = ""  # of the engine file; empty before the engine is written


def timing_cache_file(bundle: Bundle, compute_capability: str, tensorrt: str) -> Path:
    """Return the path of the kernel timing cache for this kind of GPU, kept between builds."""
    return bundle.path(ENGINES) / f"timing-sm{compute_capability.replace('.', '')}-{tensorrt}.cache"


def origin(bundle: Bundle, plan: EnginePlan, gpu: str, compute_capability: str, tensorrt: str) -> Origin:
    """Return the origin that an engine built now would have.

    Raises:
        BundleError: If the bundle has no such graph.
    """
    graph = bundle.path(plan.graph)
    if plan.graph not in bundle.manifest.files or not graph.is_file():
        raise BundleError(f"{bundle.root} has no {plan.graph}; create it with `foley-export onnx --precision`")
    # hashed again instead of taken from the manifest: the build reads the files on disk
    return Origin(
        gpu=gpu,
        compute_capability=compute_capability,
        tensorrt=tensorrt,
        graph_sha256=file_sha256(graph),
        weights_sha256=file_sha256(bundle.path(weights_file(plan.stage))),
        plan=_as_json(plan),
    )


def decide(engine: Path, wanted: Origin) -> tuple[Decision, str]:
    """Decide whether the existing engine is reused, refitted or rebuilt; return the decision and its reason."""
    try:
        found = Origin.model_validate_json(sidecar(engine).read_bytes())
    except FileNotFoundError:
        return "build", "it does not exist yet"
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
    """Return the path of the file that records an engine's origin."""
    return engine.with_name(engine.name + ".json")


def write(engine: Path, content: bytes, made_of: Origin) -> None:
    """Write an engine atomically, then its sidecar."""
    engine.parent.mkdir(parents=True, exist_ok=True)
    sidecar(engine).unlink(missing_ok=True)
    complete = made_of.model_copy(update={"engine_sha256": hashlib.sha256(content).hexdigest()})
    for path, data in ((engine, content), (sidecar(engine), complete.model_dump_json(indent=2).encode())):
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_bytes(data)
        temporary.replace(path)


def _as_json(plan: EnginePlan) -> dict[str, Any]:
    """Return the plan as it is after a JSON round trip: lists instead of tuples."""
    shapes = {name: {key: list(value) for key, value in asdict(one).items()} for name, one in plan.shapes.items()}
    return {**asdict(plan), "shapes": shapes}
