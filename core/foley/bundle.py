"""A bundle on disk: one folder with `manifest.json`, `networks/` and `tokenizer/`, checked before use."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from foley.errors import BundleError
from foley.manifest import Manifest
from foley.stages import SHARED_WEIGHTS, networks

MANIFEST = "manifest.json"
TOKENIZER = "tokenizer/tokenizer.json"
ENGINES = "engines"
_MAX_MANIFEST_BYTES = 2**20

Tuning = Literal["latency", "throughput"]
"""What an engine and its server are tuned for: one request at a time, or full batches."""

Half = Literal["fp16", "bf16"]
Precision = Literal["fp32", "fp16", "bf16"]
"""What a graph computes in. Half precision, with islands of float32, is for GPUs."""


def weights_file(stage: str) -> str:
    """Path inside the bundle of a network's weights, which may be another network's too."""
    return f"networks/{SHARED_WEIGHTS.get(stage, stage)}.safetensors"


def graph_file(stage: str, precision: Precision = "fp32") -> str:
    """Path inside the bundle of a network's ONNX graph; its weights are in `weights_file(stage)`."""
    return f"networks/{stage}.onnx" if precision == "fp32" else f"networks/{stage}.{precision}.onnx"


def engine_file(stage: str, precision: Half, tuning: Tuning) -> str:
    """Path inside the bundle of a network's TensorRT engine, which is of one machine and in no manifest."""
    return f"{ENGINES}/{tuning}/{stage}.{precision}.plan"


@dataclass(frozen=True)
class Bundle:
    """A folder and what its manifest says."""

    root: Path
    manifest: Manifest

    def path(self, name: str) -> Path:
        """Where the file that the bundle calls `name` lies."""
        return self.root / name

    @property
    def digest(self) -> str:
        """sha256 over the manifest, which names the sha256 of every file: the bundle's identity."""
        return hashlib.sha256(self.manifest.model_dump_json().encode()).hexdigest()

    def missing_graphs(self, precision: Precision = "fp32") -> list[str]:
        """Networks that `foley-export onnx` has not made a graph for yet."""
        return [stage for stage in networks(self.manifest) if graph_file(stage, precision) not in self.manifest.files]

    def need_graphs(self, precision: Precision = "fp32") -> None:
        """Raise BundleError where a network has no graph in this precision; it says how to make them."""
        if missing := self.missing_graphs(precision):
            option = "" if precision == "fp32" else f" --precision {precision}"
            raise BundleError(
                f"the bundle {self.root} has no graph for {', '.join(missing)}: "
                f"run `foley-export onnx {self.root}{option}` first"
            )


def read(root: Path) -> Bundle:
    """The bundle in the folder `root`; its files are not looked at (see `verify`).

    Raises:
        BundleError: no such folder, no manifest, or a manifest that is not valid.
    """
    path = root / MANIFEST
    try:
        if path.stat().st_size > _MAX_MANIFEST_BYTES:
            raise BundleError(f"{path} is not a bundle's manifest: it is larger than 1 MiB")
        text = path.read_bytes()
    except OSError as error:
        raise BundleError(
            f"no bundle at {root}: {path} cannot be read ({error.strerror}). "
            "`foley-export init` makes one with random weights"
        ) from error
    try:
        return Bundle(root, Manifest.model_validate_json(text))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the document"
        raise BundleError(f"{path} is not valid: {where}: {first['msg']}") from error


def verify(bundle: Bundle) -> None:
    """Check that every file the manifest lists is there, whole and unchanged.

    Raises:
        BundleError: names the first file that is missing, outside the bundle, or damaged.
    """
    root = bundle.root.resolve()
    for name, expected in bundle.manifest.files.items():
        try:
            path = (root / name).resolve()
            present = path.is_file()
        except (OSError, ValueError) as error:  # too long, or with a NUL in it
            raise BundleError(f"{bundle.root / MANIFEST} lists {name[:100]!r}, which no file can be called") from error
        if not path.is_relative_to(root):
            raise BundleError(f"{bundle.root / MANIFEST} lists {name}, which lies outside the bundle")
        if not present:
            raise BundleError(f"the bundle lacks {path}; make or copy it again")
        if file_sha256(path) != expected:
            raise BundleError(f"{path} is damaged: its content is not what the manifest says; make or copy it again")


def file_sha256(path: Path) -> str:
    """sha256 of a file's content, in hex."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
