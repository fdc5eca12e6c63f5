"""Writes the model repository for one bundle and one target.

The committed `config.pbtxt` files have the tensor sizes of the paper, for the CPU. This module writes what depends on
the bundle (tensor dimensions, paths of its files), from `foley.stages`.
"""

import hashlib
import shutil
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from foley.bundle import Bundle, file_sha256, weights_file
from foley.errors import BundleError, SettingError
from foley.stages import Dtype, Stage, Tensor, networks, stages
from foley_server.launcher.gpu import Gpu, configure

VERSION = "1"

DATA_TYPES: dict[Dtype, int] = {
    "uint8": model_config_pb2.TYPE_UINT8,
    "int32": model_config_pb2.TYPE_INT32,
    "int64": model_config_pb2.TYPE_INT64,
    "float32": model_config_pb2.TYPE_FP32,
    "bytes": model_config_pb2.TYPE_STRING,
}


def read_config(folder: Path) -> model_config_pb2.ModelConfig:
    """Read the `config.pbtxt` in a model's `folder`.

    Raises:
        SettingError: The file is missing or not a valid configuration.
    """
    path = folder / "config.pbtxt"
    try:
        return text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
    except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
        raise SettingError(f"{path} cannot be read as a model's configuration; give the model repository") from error


def apply_contract(config: model_config_pb2.ModelConfig, stage: Stage) -> None:
    """Set the inputs, outputs and maximum batch size of `config` to those of `stage`."""
    del config.input[:], config.output[:]
    for tensor in stage.inputs:
        config.input.add(name=tensor.name, data_type=DATA_TYPES[tensor.dtype], dims=dims(tensor))
    for tensor in stage.outputs:
        config.output.add(name=tensor.name, data_type=DATA_TYPES[tensor.dtype], dims=dims(tensor))
    config.max_batch_size = stage.max_batch


def dims(tensor: Tensor) -> Iterable[int]:
    """Return the shape of `tensor` as Triton dims: -1 for variable dimensions."""
    return [-1 if isinstance(size, str) else size for size in tensor.shape]


def lay_out(repository: Path, bundle: Bundle, destination: Path, on: Gpu | None = None) -> Path:
    """Write the model repository that serves `bundle`.

    Args:
        repository: The committed model repository.
        bundle: The bundle to serve.
        destination: Folder to write to.
        on: GPU configuration; None for the CPU.

    Returns:
        `destination`.

    Raises:
        BundleError: The bundle has no graphs, or no engines, for this target.
        SettingError: `repository` is not the model repository.
    """
    if on and on.target == "tensorrt":
        _need_engines(bundle, on)
    else:
        bundle.need_graphs(on.precision if on else "fp32")
    parameters = {
        "bundle": str(bundle.root.resolve()),
        "digest": bundle.digest,
        "manifest": bundle.manifest.model_dump_json(),
        "onnxruntime": metadata.version("onnxruntime"),
        **_platform(bundle, on),
    }
    for name, stage in stages(bundle.manifest).items():
        config = read_config(repository / name)
        apply_contract(config, stage)
        is_on_gpu = on is not None and stage.kind == "network"
        if on and is_on_gpu:
            configure(config, stage, on)
        if config.backend == "python":
            for key, value in parameters.items():
                config.parameters[key].string_value = value
        folder = destination / name
        (folder / VERSION).mkdir(parents=True)
        (folder / "config.pbtxt").write_text(text_format.MessageToString(config))
        if on and is_on_gpu:
            _place(bundle, name, on, folder / VERSION)
        elif (repository / name / VERSION / "model.py").is_file():
            shutil.copy(repository / name / VERSION / "model.py", folder / VERSION / "model.py")
    return destination


def _need_engines(bundle: Bundle, on: Gpu) -> None:
    """Check that every network has an engine.

    Raises:
        BundleError: An engine is missing.
    """
    if missing := [name for name in networks(bundle.manifest) if not bundle.path(on.source(name)).is_file()]:
        raise BundleError(
            f"the bundle {bundle.root} has no engine for {', '.join(missing)}: "
            f"run `foley-export tensorrt {bundle.root} --precision {on.precision} --profile {on.tuning}` first"
        )


def _platform(bundle: Bundle, on: Gpu | None) -> dict[str, str]:
    """Return the parameters that identify the platform as far as it affects results; "" if one does not apply.

    Engines are not part of the bundle's digest, and each build of an engine may select different kernels. With graphs,
    the tuning changes only the queue delay of batching.
    """
    if on is None:
        return {"target": "cpu", "precision": "fp32", "tuning": "", "engines_sha256": ""}
    platform = {"target": on.target, "precision": on.precision, "tuning": "", "engines_sha256": ""}
    if on.target == "tensorrt":
        engines = [file_sha256(bundle.path(on.source(name))) for name in networks(bundle.manifest)]
        platform |= {"tuning": on.tuning, "engines_sha256": hashlib.sha256("".join(engines).encode()).hexdigest()}
    return platform


def _place(bundle: Bundle, stage: str, on: Gpu, folder: Path) -> None:
    """Link what the backend loads into a model's `folder`: the graph and its weights, or the engine."""
    files = {on.source(stage): on.model_file}
    if on.target == "cuda":
        files[weights_file(stage)] = Path(weights_file(stage)).name  # the name that the graph refers to
    for source, name in files.items():
        # link both: ONNX Runtime resolves the graph's link, and looks for the weights in the folder of its target
        (folder / name).symlink_to(bundle.path(source).resolve())
