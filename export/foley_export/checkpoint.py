"""Reading weights that others published: tensors only, never code."""

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

# dicts around the state dict, by the key that it has in them; Video2RMS' is called optimizer in spite of what it holds
_SHELLS = ("state_dict", "optimizer_Video2RMS")
_PARALLEL = "module."  # torch.nn.DataParallel puts it in front of every key
_ZIP = b"PK"
_MAX_SAFETENSORS_HEADER = 100_000_000  # bytes; the format's own limit


@dataclass(frozen=True)
class Checkpoint:
    """What a file of weights holds.

    Attributes:
        path: the file.
        tensors: by key, on the CPU and, where the format allows, mapped from the file and not read yet.
        others: names of what is no tensor (epoch, learning rate, ...).
    """

    path: Path
    tensors: Mapping[str, Tensor]
    others: tuple[str, ...] = ()


def read(path: Path) -> Checkpoint:
    """The weights in a file that `torch.save` or safetensors wrote, recognised by its content.

    Raises:
        CheckpointError: the file is missing, damaged, holds code, or is something else.
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
    """The first names of a list that may be long, and how many more there are."""
    shown = [name if name.isprintable() and len(name) <= 200 else repr(name[:200]) for name in names[:limit]]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more:,} more" if more else "")


def _is_safetensors(head: bytes) -> bool:
    """The format starts with the size of its header, which is JSON."""
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
            warnings.simplefilter("ignore")  # of pickles it may not know: what comes of them is said below
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # whatever a damaged pickle leads to: not only torch's own errors
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
