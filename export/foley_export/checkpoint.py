"""Reads published weights: tensors only, never code."""

import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from foley.errors import CheckpointError

# keys under which a wrapping dict holds the state dict; in Video2RMS' files the name is misleading
_WRAPPER_KEYS = ("state_dict", "optimizer_Video2RMS")
_DATA_PARALLEL_PREFIX = "module."  # prefix that torch.nn.DataParallel adds to every key
_ZIP_MAGIC = b"PK"
_MAX_SAFETENSORS_HEADER = 100_000_000  # bytes; the format's own limit


@dataclass(frozen=True)
class Checkpoint:
    """The content of a weights file.

    Attributes:
        path: The file.
        tensors: Tensors by key, on the CPU, memory-mapped if the format allows it.
        others: Names of entries that are not tensors (epoch, learning rate, ...).
    """

    path: Path
    tensors: Mapping[str, Tensor]
    others: tuple[str, ...] = ()


def read(path: Path) -> Checkpoint:
    """Read a file written by `torch.save` or safetensors; the format is detected from its content.

    Raises:
        CheckpointError: If the file is missing or damaged, contains code, or is not a checkpoint.
    """
    try:
        if path.exists() and not path.is_file():
            raise CheckpointError(f"{path} is not a file; pass the file that contains the weights")
        with path.open("rb") as file:
            header = file.read(9)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    if not header:
        raise CheckpointError(f"{path} is empty; copy or download it again")
    content = _read_safetensors(path) if _is_safetensors(header) else _read_torch(path, header)

    others: list[str] = []
    for wrapper in _WRAPPER_KEYS:
        if isinstance(content.get(wrapper), Mapping):
            others += [str(key) for key in content if key != wrapper]
            content = content[wrapper]
    tensors = {str(key): value.detach() for key, value in content.items() if isinstance(value, Tensor)}
    others += [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if not tensors:
        raise CheckpointError(f"{path} contains no weights, only {shorten(others) or 'nothing'}; pass a state dict")
    if all(key.startswith(_DATA_PARALLEL_PREFIX) for key in tensors):
        tensors = {key.removeprefix(_DATA_PARALLEL_PREFIX): tensor for key, tensor in tensors.items()}
    return Checkpoint(path, tensors, tuple(others))


def shorten(names: list[str], limit: int = 8) -> str:
    """Join the first `limit` names of a list, followed by the number of omitted ones."""
    shown = [name if name.isprintable() and len(name) <= 200 else repr(name[:200]) for name in names[:limit]]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more:,} more" if more else "")


def _is_safetensors(header: bytes) -> bool:
    """Whether the file starts like safetensors: the size of the header, then the header, which is JSON."""
    return header[8:9] == b"{" and int.from_bytes(header[:8], "little") <= _MAX_SAFETENSORS_HEADER


def _read_safetensors(path: Path) -> Mapping[Any, Any]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is damaged or truncated ({error}); copy or download it again") from error


def _read_torch(path: Path, header: bytes) -> Mapping[Any, Any]:
    try:
        zipped = zipfile.is_zipfile(path)
    except zipfile.BadZipFile as error:
        raise CheckpointError(f"{path} is damaged ({error}); copy or download it again") from error
    if header.startswith(_ZIP_MAGIC) and not zipped:
        raise CheckpointError(f"{path} is truncated: the end of the file is missing; copy or download it again")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about unknown pickle content, whose errors are reported below
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # damaged pickles raise more than torch's own errors
        raise CheckpointError(_load_error(path, header, str(error))) from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} contains a {type(content).__name__} instead of a state dict; pass a state dict")
    return content


def _load_error(path: Path, header: bytes, message: str) -> str:
    if found := re.search(r"GLOBAL ([\w.]+)", message):
        return (
            f"{path} is rejected: it contains {found[1]}, and loading objects other than tensors can execute code; "
            "if you trust its source, save only its state dict"
        )
    if header.startswith(_ZIP_MAGIC) or "EOF" in message or "end of" in message:
        return f"{path} is not a PyTorch checkpoint, or it is damaged; copy or download it again"
    return f"{path} is not a checkpoint; pass a state dict saved by torch.save, or a safetensors file"
