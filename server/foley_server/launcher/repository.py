"""Writes the model repository for one bundle and one target.

A model's folder contains `config.pbtxt`, which follows from `foley.stages` (see `model_config`), and, depending on the
model and the target, a graph, an engine or a `model.py`.
"""

import hashlib
import json
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from google.protobuf import text_format

from foley.bundle import Bundle, file_sha256, weights_file
from foley.errors import BundleError, SettingError
from foley.stages import Stage, networks, stages
from foley_server.launcher.gpu import Gpu, configure
from foley_server.launcher.model_config import model_config

HANDWRITTEN_VERSION = "1"


def lay_out(models: Path, bundle: Bundle, destination: Path, gpu: Gpu | None = None) -> Path:
    """Write the model repository that serves `bundle`.

    Args:
        models: Folder of the hand-written models, NAME/1/model.py. One with the name of a network replaces it on the
            CPU.
        bundle: The bundle to serve.
        destination: Folder to write to.
        gpu: GPU configuration; None for the CPU.

    Returns:
        `destination`.

    Raises:
        BundleError: The bundle has no graphs, or no engines, for this target.
        SettingError: A hand-written model is missing.
    """
    if gpu and gpu.target == "tensorrt":
        _check_engines(bundle, gpu)
    else:
        bundle.need_graphs(gpu.precision if gpu else "fp32")
    parameters = {
        "bundle": str(bundle.root.resolve()),
        "digest": bundle.digest,
        "manifest": bundle.manifest.model_dump_json(),
        "onnxruntime": metadata.version("onnxruntime"),
        **_platform(bundle, gpu),
    }
    version = parameters["version"] = served_version(parameters)
    table = stages(bundle.manifest)
    sources = {name: _model_source(models, stage) for name, stage in table.items() if stage.kind != "ensemble"}
    for name, stage in table.items():
        config = model_config(stage, table)
        is_on_gpu = gpu is not None and stage.kind == "network"
        if gpu and is_on_gpu:
            configure(config, stage, gpu)
        if config.backend == "python":
            for key, value in parameters.items():
                config.parameters[key].string_value = value
        folder = destination / name
        (folder / version).mkdir(parents=True)
        (folder / "config.pbtxt").write_text(text_format.MessageToString(config))
        if gpu and is_on_gpu:
            _place(bundle, name, gpu, folder / version)
        elif name in sources:
            (folder / version / "model.py").write_text(sources[name])
    return destination


def served_version(parameters: Mapping[str, str]) -> str:
    """Return the version number of the served models: a hash of what affects their results.

    Clients name it in every call. gRPC reconnects silently, and a Triton that meanwhile took over the address refuses
    the calls if it serves another bundle or runs the networks on something else.

    Args:
        parameters: Parameters of the models; the path of the bundle does not count.
    """
    identity = {name: value for name, value in parameters.items() if name != "bundle"}
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return str(1 + int(digest[:15], 16))  # Triton's versions are positive 64-bit integers


def _model_source(models: Path, stage: Stage) -> str:
    """Return the source of a model of the Python backend: hand-written, or an import of the class that runs it.

    Raises:
        SettingError: The model must be hand-written, and the file is missing.
    """
    path = models / stage.name / HANDWRITTEN_VERSION / "model.py"
    if path.is_file():
        return path.read_text()
    if stage.kind == "network":
        module = "network_model"
    elif stage.name in ("optical_flow", "optical_flow_dis"):
        module = "dis_model"
    else:
        raise SettingError(f"there is no file {path}; give the folder of the hand-written models")
    return f"from foley_server.backend.{module} import TritonPythonModel as TritonPythonModel\n"


def _check_engines(bundle: Bundle, gpu: Gpu) -> None:
    """Check that every network has an engine.

    Raises:
        BundleError: An engine is missing.
    """
    if missing := [name for name in networks(bundle.manifest) if not bundle.path(gpu.source(name)).is_file()]:
        raise BundleError(
            f"the bundle {bundle.root} has no engine for {', '.join(missing)}: "
            f"run `foley-export tensorrt {bundle.root} --precision {gpu.precision} --profile {gpu.tuning}` first"
        )


def _platform(bundle: Bundle, gpu: Gpu | None) -> dict[str, str]:
    """Return the parameters that identify the platform as far as it affects results; "" if one does not apply.

    Engines are not part of the bundle's digest, and each build of an engine may select different kernels. With graphs,
    the tuning changes only the queue delay of batching.
    """
    if gpu is None:
        return {"target": "cpu", "precision": "fp32", "tuning": "", "engines_sha256": ""}
    platform = {"target": gpu.target, "precision": gpu.precision, "tuning": "", "engines_sha256": ""}
    if gpu.target == "tensorrt":
        engines = [file_sha256(bundle.path(gpu.source(name))) for name in networks(bundle.manifest)]
        platform |= {"tuning": gpu.tuning, "engines_sha256": hashlib.sha256("".join(engines).encode()).hexdigest()}
    return platform


def _place(bundle: Bundle, stage: str, gpu: Gpu, folder: Path) -> None:
    """Link what the backend loads into a model's `folder`: the graph and its weights, or the engine."""
    files = {gpu.source(stage): gpu.model_file}
    if gpu.target == "cuda":
        files[weights_file(stage)] = Path(weights_file(stage)).name  # the name that the graph refers to
    for source, name in files.items():
        # link both: ONNX Runtime resolves the graph's link, and looks for the weights in the folder of its target
        (folder / name).symlink_to(bundle.path(source).resolve())
