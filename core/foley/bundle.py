"""Reads and verifies bundles: folders with `manifest.json`, `networks/` and `tokenizer/`."""

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
"""What an engine and its server are optimised for: "latency" of single requests, or "throughput" of full batches."""

Half = Literal["fp16", "bf16"]
Precision = Literal["fp32", "fp16", "bf16"]
"""Precision of a graph. "fp16" and "bf16", with some operations in float32, are for GPUs."""


def weights_file(stage: str) -> str:
    """Return the path, inside the bundle, of a network's weights; networks may share a file."""
    return f"networks/{SHARED_WEIGHTS.get(stage, stage)}.safetensors"


def graph_file(stage: str, precision: Precision = "fp32") -> str:
    """Return the path, inside the bundle, of a network's ONNX graph; its weights are in `weights_file(stage)`."""
    return f"networks/{stage}.onnx" if precision == "fp32" else f"networks/{stage}.{precision}.onnx"


def engine_file(stage: str, precision: Half, tuning: Tuning) -> str:
    """Return the path, inside the bundle, of a TensorRT engine; it is specific to a machine, so not in the manifest."""
    return f"{ENGINES}/{tuning}/{stage}.{precision}.plan"


@dataclass(frozen=True)
class Bundle:
    """A bundle: its folder and its manifest."""

    root: Path
    manifest: Manifest

    def path(self, name: str) -> Path:
        """Return the path of the bundle's file `name`."""
        return self.root / name

    @property
    def digest(self) -> str:
        """SHA-256 of the manifest, which lists the SHA-256 of every file; identifies the bundle."""
        return hashlib.sha256(self.manifest.model_dump_json().encode()).hexdigest()

    def missing_graphs(self, precision: Precision = "fp32") -> list[str]:
        """Return the networks without an ONNX graph; `foley-export onnx` exports them."""
        return [stage for stage in networks(self.manifest) if graph_file(stage, precision) not in self.manifest.files]

    def need_graphs(self, precision: Precision = "fp32") -> None:
        """Check that every network has a graph in this precision.

        Raises:
            BundleError: A graph is missing; the message names the command that exports it.
        """
        if missing := self.missing_graphs(precision):
            option = "" if precision == "fp32" else f" --precision {precision}"
            raise BundleError(
                f"the bundle {self.root} has no ONNX graph for {', '.join(missing)}; "
                f"run `foley-export onnx {self.root}{option}`"
            )


def read(root: Path) -> Bundle:
    """Read the bundle in the folder `root`. Only the manifest is read; `verify` checks the files.

    Raises:
        BundleError: The folder or the manifest is missing, or the manifest is invalid.
    """
    path = root / MANIFEST
    try:
        if path.stat().st_size > _MAX_MANIFEST_BYTES:
            raise BundleError(f"{path} is larger than 1 MiB, so it is not the manifest of a bundle; check the folder")
        text = path.read_bytes()
    except OSError as error:
        raise BundleError(
            f"no bundle at {root}: cannot read {path} ({error.strerror}); "
            "check the path, or create a bundle with `foley-export init`"
        ) from error
    try:
        return Bundle(root, Manifest.model_validate_json(text))
    except ValidationError as error:
        first = error.errors()[0]
        location = ".".join(str(part) for part in first["loc"]) or "the document"
        raise BundleError(f"{path} is not valid: {location}: {first['msg']}; create the bundle again") from error


def verify(bundle: Bundle) -> None:
    """Check that every file in the manifest exists and has the listed SHA-256.

    Raises:
        BundleError: A file is missing, outside the bundle, or damaged; the message names the first one.
    """
    root = bundle.root.resolve()
    for name, expected in bundle.manifest.files.items():
        try:
            path = (root / name).resolve()
            present = path.is_file()
        except (OSError, ValueError) as error:  # the name is too long, or contains NUL
            raise BundleError(
                f"{bundle.root / MANIFEST} lists {name[:100]!r}, an invalid file name; create the bundle again"
            ) from error
        if not path.is_relative_to(root):
            raise BundleError(
                f"{bundle.root / MANIFEST} lists {name}, which is outside the bundle; create the bundle again"
            )
        if not present:
            raise BundleError(f"{path} is missing; create or copy the bundle again")
        if file_sha256(path) != expected:
            raise BundleError(
                f"{path} is damaged: its SHA-256 is not that in the manifest; create or copy the bundle again"
            )


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hex."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
