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
_SHELLS = ("state_dict", "optimizer_Video2RMS")
_PARALLEL = "module."  # prefix that torch.nn.DataParallel adds to every key
_ZIP = b"PK"
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
            raise CheckpointError(f"{path} is no file; give the file that holds the weights")
        with path.open("rb") as file:
            head = file.read(9)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    if not head:
        raise CheckpointError(f"{path} is empty; copy or download it again")
    content = _read_safetensors(path) if _is_safetensors(head) else _read_torch(path, head)

    others: list[str] = []
    for shell in _SHELLS:
        if isinstance(content.get(shell), Mapping):
            others += [str(key) for key in content if key != shell]
            content = content[shell]
    tensors = {str(key): value.detach() for key, value in content.items() if isinstance(value, Tensor)}
    others += [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if not tensors:
        raise CheckpointError(f"{path} holds no weights, only {shorten(others) or 'nothing'}; give a state dict")
    if all(key.startswith(_PARALLEL) for key in tensors):
        tensors = {key.removeprefix(_PARALLEL): tensor for key, tensor in tensors.items()}
    return Checkpoint(path, tensors, tuple(others))


def shorten(names: list[str], limit: int = 8) -> str:
    """Join the first `limit` names of a list, followed by the number of omitted ones."""
    shown = [name if name.isprintable() and len(name) <= 200 else repr(name[:200]) for name in names[:limit]]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more:,} more" if more else "")


def _is_safetensors(head: bytes) -> bool:
    """Whether the file starts like safetensors: the size of the header, then the header, which is JSON."""
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _MAX_SAFETENSORS_HEADER


def _read_safetensors(path: Path) -> Mapping[Any, Any]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is damaged or cut off ({error}); copy or download it again") from error


def _read_torch(path: Path, head: bytes) -> Mapping[Any, Any]:
    try:
        zipped = zipfile.is_zipfile(path)
    except zipfile.BadZipFile as error:
        raise CheckpointError(f"{path} is damaged ({error}); copy or download it again") from error
    if head.startswith(_ZIP) and not zipped:
        raise CheckpointError(f"{path} is cut off: the end of the file is missing; copy or download it again")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about unknown pickle content, whose errors are reported below
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # damaged pickles raise more than torch's own errors
        raise CheckpointError(_why_not(path, head, str(error))) from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__} and no state dict")
    return content


def _why_not(path: Path, head: bytes, message: str) -> str:
    if found := re.search(r"GLOBAL ([\w.]+)", message):
        return (
            f"{path} is refused: it holds {found[1]}, and loading anything but tensors can run code; "
            "save its state dict alone, if you trust where it is from"
        )
    if head.startswith(_ZIP) or "EOF" in message or "end of" in message:
        return f"{path} is no checkpoint of torch, or it is damaged; copy or download it again"
    return f"{path} is no checkpoint: it is neither a state dict that torch has saved nor safetensors"
