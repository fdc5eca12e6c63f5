"""Lays the committed model repository out for one bundle and one target.

The committed `config.pbtxt` files are the paper's sizes on the processor. What depends on the
bundle (tensor dimensions, where its files are) is written here, from `foley.stages`.
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
from foley_server.gpu import Gpu, configure

VERSION = "1"

DATA_TYPES: dict[Dtype, int] = {
    "uint8": model_config_pb2.TYPE_UINT8,
    "int32": model_config_pb2.TYPE_INT32,
    "int64": model_config_pb2.TYPE_INT64,
    "float32": model_config_pb2.TYPE_FP32,
    "bytes": model_config_pb2.TYPE_STRING,
}


def read_config(folder: Path) -> model_config_pb2.ModelConfig:
    """The `config.pbtxt` in a model's `folder`.

    Raises:
        SettingError: there is none, or it is not one.
    """
    path = folder / "config.pbtxt"
    try:
        return text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
    except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
        raise SettingError(f"{path} cannot be read as a model's configuration; give the model repository") from error


def apply_contract(config: model_config_pb2.ModelConfig, stage: Stage) -> None:
    """Make the inputs and outputs of `config` those of `stage`."""
    del config.input[:], config.output[:]
    for tensor in stage.inputs:
        config.input.add(name=tensor.name, data_type=DATA_TYPES[tensor.dtype], dims=dims(tensor))
    for tensor in stage.outputs:
        config.output.add(name=tensor.name, data_type=DATA_TYPES[tensor.dtype], dims=dims(tensor))
    config.max_batch_size = stage.max_batch


def dims(tensor: Tensor) -> Iterable[int]:
    """Triton's form of a shape: -1 where it varies."""
    return [-1 if isinstance(size, str) else size for size in tensor.shape]


def lay_out(repository: Path, bundle: Bundle, destination: Path, on: Gpu | None = None) -> Path:
    """Write the model repository that serves `bundle` into `destination`: on the processor, or `on` a GPU.

    Raises:
        BundleError: the bundle has no graphs yet, or no engines.
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
    """Raise BundleError where a network has no engine."""
    if missing := [name for name in networks(bundle.manifest) if not bundle.path(on.source(name)).is_file()]:
        raise BundleError(
            f"the bundle {bundle.root} has no engine for {', '.join(missing)}: "
            f"run `foley-export tensorrt {bundle.root} --precision {on.precision} --profile {on.tuning}` first"
        )


def _platform(bundle: Bundle, on: Gpu | None) -> dict[str, str]:
    """What the networks run on, for all that it changes their numbers; "" where it does not apply.

    Engines are not in the bundle's digest, and each build of one may choose other kernels. With graphs, the tuning only
    says how long a request waits for others.
    """
    if on is None:
        return {"target": "cpu", "precision": "fp32", "tuning": "", "engines_sha256": ""}
    platform = {"target": on.target, "precision": on.precision, "tuning": "", "engines_sha256": ""}
    if on.target == "tensorrt":
        engines = [file_sha256(bundle.path(on.source(name))) for name in networks(bundle.manifest)]
        platform |= {"tuning": on.tuning, "engines_sha256": hashlib.sha256("".join(engines).encode()).hexdigest()}
    return platform


def _place(bundle: Bundle, stage: str, on: Gpu, folder: Path) -> None:
    """Put what a backend loads into a model's `folder`: the graph with its weights beside it, or the engine."""
    files = {on.source(stage): on.model_file}
    if on.target == "cuda":
        files[weights_file(stage)] = Path(weights_file(stage)).name  # as the graph calls it
    for source, name in files.items():
        # both as links: ONNX Runtime follows the graph's, and then wants its weights beside what it found there
        (folder / name).symlink_to(bundle.path(source).resolve())
