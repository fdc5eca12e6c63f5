"""What NVIDIA's own tools need to drive this server: inputs for every served model, and the commands.

The contracts say names, types and shapes; what values make sense is said here.
"""

import base64
import json
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from foley import clip
from foley.manifest import Manifest
from foley.stages import Stage, Tensor, stages

Rng = np.random.Generator
TOKENS = 12
STEPS = 5  # of a `generate` call
CONCURRENCY = "1:4:1"
MEASURED_MS = 10_000
COMMANDS = "commands.sh"
MODEL_ANALYZER = "model_analyzer.yaml"

_SIZES = {"frames": clip.CHUNK_PAIRS + 1, "pairs": clip.CHUNK_PAIRS, "tokens": TOKENS}
_SENSIBLE: Mapping[str, Callable[[Rng, tuple[int, ...]], np.ndarray]] = {
    "timestep": lambda rng, shape: rng.integers(1, 1000, shape),
    "input_ids": lambda rng, shape: rng.integers(3, 250, shape),
    "attention_mask": lambda _, shape: np.ones(shape),
    "envelope": lambda rng, shape: rng.uniform(0, 0.3, shape),
    "guidance": lambda _, shape: np.full(shape, 3.5),
    "seed": lambda _, shape: np.arange(shape[0])[::-1],  # a seed, and the first window
    "steps": lambda _, shape: np.full(shape, STEPS),
    "eta": lambda _, shape: np.zeros(shape),
    "guidance_interval": lambda *_: np.array([0.0, 100.0]),
}
_WORDS = {"text": "a stick hits metal", "sampler": "dpm++", "spacing": "uniform"}


def write(manifest: Manifest, folder: Path, url: str) -> None:
    """Write to `folder`: MODEL.json for every served model, the commands, and Model Analyzer's configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    table = stages(manifest)
    for name, stage in table.items():
        (folder / f"{name}.json").write_text(json.dumps({"data": [example(stage)]}))
    lines = [shlex.join(command(stage, url)) for stage in table.values()]
    (folder / COMMANDS).write_text("\n".join(["#!/bin/sh", 'cd "$(dirname "$0")" || exit 1', *lines]) + "\n")
    (folder / COMMANDS).chmod(0o755)
    (folder / MODEL_ANALYZER).write_text(yaml.safe_dump(model_analyzer(table, url), sort_keys=False))


def example(stage: Stage, seed: int = 0) -> dict[str, Any]:
    """One request for a model, as perf_analyzer's `--input-data` takes it; without the batch, which it adds."""
    rng = np.random.default_rng(seed)
    return {tensor.name: _encoded(tensor, values(tensor, rng)) for tensor in stage.inputs}


def values(tensor: Tensor, rng: Rng) -> np.ndarray:
    """Values that make sense for an input, in the shape of one row."""
    shape = tuple(_SIZES[size] if isinstance(size, str) else size for size in tensor.shape)
    if tensor.dtype == "bytes":
        return np.full(shape, _WORDS[tensor.name], np.object_)
    if tensor.name in _SENSIBLE:
        return _SENSIBLE[tensor.name](rng, shape).astype(tensor.numpy_dtype)
    if tensor.dtype == "uint8":
        return rng.integers(0, 256, shape, np.uint8)
    return rng.standard_normal(shape).astype(tensor.numpy_dtype)


def command(stage: Stage, url: str) -> list[str]:
    """How perf_analyzer drives a model over gRPC, with `CONCURRENCY` callers who each wait for their answer."""
    words = ["perf_analyzer", "-m", stage.name, "-i", "grpc", "-u", url, "--input-data", f"{stage.name}.json"]
    words += ["--concurrency-range", CONCURRENCY, "--measurement-interval", str(MEASURED_MS), "-f", f"{stage.name}.csv"]
    return [*words, "--async", "--streaming"] if stage.decoupled else words


def model_analyzer(table: Mapping[str, Stage], url: str) -> dict[str, Any]:
    """Model Analyzer's configuration, for a server that runs already: `model-analyzer profile -f FILE`."""
    return {
        "triton_launch_mode": "remote",
        "triton_grpc_endpoint": url,
        "client_protocol": "grpc",
        "output_model_repository_path": "output_models",
        "override_output_model_repository": True,
        "run_config_search_disable": True,  # the configurations are this project's; callers and batches are searched
        "concurrency": [1, 2, 4, 8],
        "profile_models": {
            name: {
                "perf_analyzer_flags": {
                    "input-data": f"{name}.json",
                    **({"streaming": True} if stage.decoupled else {}),
                },
                "parameters": {"batch_sizes": [1, stage.max_batch] if stage.max_batch > 1 else [1]},
            }
            for name, stage in table.items()
        },
    }


def _encoded(tensor: Tensor, array: np.ndarray) -> dict[str, Any]:
    if tensor.dtype == "bytes":
        return {"content": array.tolist(), "shape": list(array.shape)}
    return {"content": {"b64": base64.b64encode(array.tobytes()).decode()}, "shape": list(array.shape)}
