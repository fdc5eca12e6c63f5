"""Weight files are read as tensors or rejected in one sentence; code in them never runs."""

import os
import pickle
import zipfile
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from foley.errors import CheckpointError
from foley_export.checkpoint import read, shorten

WEIGHTS = {"layer.weight": torch.arange(6.0).reshape(2, 3), "layer.bias": torch.ones(2), "steps": torch.tensor(7)}


class Harmful:
    """Its pickle creates a folder when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def same(tensors) -> bool:
    return list(tensors) == list(WEIGHTS) and all(torch.equal(tensors[key], WEIGHTS[key]) for key in WEIGHTS)


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize(
    ("content", "others"),
    [
        (WEIGHTS, ()),
        (OrderedDict(WEIGHTS), ()),
        ({key: torch.nn.Parameter(t, requires_grad=t.is_floating_point()) for key, t in WEIGHTS.items()}, ()),
        ({"epoch": 3, "state_dict": WEIGHTS, "optimizer_states": []}, ("epoch", "optimizer_states")),
        ({"epoch": 3, "learning_rate": 0.1, "optimizer_Video2RMS": WEIGHTS}, ("epoch", "learning_rate")),
        ({f"module.{key}": tensor for key, tensor in WEIGHTS.items()}, ()),
        ({**WEIGHTS, "note": "text", 5: None}, ("note", "5")),
    ],
    ids=["plain", "ordered", "parameters", "Lightning", "Video2RMS", "data parallel", "with metadata"],
)
def test_state_dict_is_unwrapped(tmp_path, content, others, old):
    torch.save(content, tmp_path / "weights.pth", _use_new_zipfile_serialization=not old)
    found = read(tmp_path / "weights.pth")
    assert same(found.tensors)
    assert found.others == others
    assert not any(tensor.requires_grad for tensor in found.tensors.values())


def test_safetensors_are_recognised_by_content(tmp_path):
    save_file(WEIGHTS, tmp_path / "weights.pth")
    found = read(tmp_path / "weights.pth").tensors
    assert all(torch.equal(found[key], WEIGHTS[key]) for key in WEIGHTS)


def test_tensors_are_memory_mapped(tmp_path):
    torch.save({"a": torch.zeros(1000).expand(4, 1000)}, tmp_path / "weights.pth")
    assert (tmp_path / "weights.pth").stat().st_size < 10_000
    assert read(tmp_path / "weights.pth").tensors["a"].shape == (4, 1000)


@pytest.mark.parametrize("form", ["torch", "old torch", "pickle", "old pickle"])
@pytest.mark.filterwarnings("error")
def test_pickle_with_code_is_rejected_unexecuted(tmp_path, form):
    content = {**WEIGHTS, "harm": Harmful(tmp_path / "harm")}
    path = tmp_path / "weights.pth"
    if form == "pickle":
        path.write_bytes(pickle.dumps(content))
    elif form == "old pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "torch")
    with pytest.raises(CheckpointError) as raised:
        read(path)
    assert str(path) in str(raised.value)
    assert "weights_only" not in str(raised.value)  # torch's advice for loading it anyway
    if "torch" in form:
        assert "posix.mkdir" in str(raised.value)
    assert not (tmp_path / "harm").exists()


def test_rejects_objects_other_than_tensors(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pth")
    with pytest.raises(CheckpointError, match=r"rejected: it contains torch\.nn\.modules\.linear\.Linear"):
        read(tmp_path / "module.pth")


def truncate(path: Path, old: bool, share: float) -> None:
    torch.save({"a": torch.ones(30_000)}, path, _use_new_zipfile_serialization=not old)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])


def write_archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "text")


def truncate_safetensors(path: Path) -> None:
    save_file(WEIGHTS, path)
    path.write_bytes(path.read_bytes()[:-4])


UNREADABLE = {
    "missing": lambda path: None,
    "folder": lambda path: path.mkdir(),
    "pipe": lambda path: os.mkfifo(path),
    "broken link": lambda path: path.symlink_to("nothing"),
    "empty": lambda path: path.touch(),
    "web page": lambda path: path.write_text("<!DOCTYPE html><html>Not found</html>"),
    "Git LFS pointer": lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\n"),
    "NumPy array": lambda path: np.save(path.open("wb"), np.ones(3)),
    "other archive": write_archive,
    "TorchScript": lambda path: torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path),
    "truncated": lambda path: truncate(path, False, 0.5),
    "truncated near the end": lambda path: truncate(path, False, 0.999),
    "truncated near the start": lambda path: truncate(path, False, 0.0001),
    "truncated, old format": lambda path: truncate(path, True, 0.5),
    "truncated near the start, old format": lambda path: truncate(path, True, 0.001),
    "truncated safetensors": truncate_safetensors,
    "invalid safetensors": lambda path: path.write_bytes((5).to_bytes(8, "little") + b"{abcd"),
    "list": lambda path: torch.save([torch.ones(1)], path),
    "tensor": lambda path: torch.save(torch.ones(1), path),
    "no tensors": lambda path: torch.save({"epoch": 3}, path),
    "empty dict": lambda path: torch.save({}, path),
    "optimizer": lambda path: torch.save({"state": {0: {"step": torch.ones(1)}}, "param_groups": []}, path),
}


@pytest.mark.parametrize("write", UNREADABLE.values(), ids=UNREADABLE.keys())
def test_unreadable_file_is_rejected_in_one_sentence(tmp_path, write):
    path = tmp_path / "weights.pth"
    write(path)
    with pytest.raises(CheckpointError) as raised:
        read(path)
    message = str(raised.value)
    assert str(path) in message
    assert message[0].islower() or message.startswith(str(path))
    assert not message.endswith(".")
    assert "\n" not in message


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), form=st.sampled_from(["new", "old", "safetensors"]))
def test_damaged_file_is_read_or_rejected(tmp_path, data, form):
    path = tmp_path / "weights.pth"
    if form == "safetensors":
        save_file(WEIGHTS, path)
    else:
        torch.save(WEIGHTS, path, _use_new_zipfile_serialization=form == "new")
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)) | st.just(len(content)))])
    with suppress(CheckpointError):
        assert read(path).tensors


def test_multi_disk_archive_is_damaged(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(WEIGHTS, path)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"PK\x06\x07\0", b"PK\x06\x07\1"))
    assert path.read_bytes() != content
    with pytest.raises(CheckpointError, match="damaged"):
        read(path)


def test_shorten_quotes_control_characters():
    assert shorten(["a\x1b[2J", "b"]) == r"'a\x1b[2J', b"
    assert shorten([str(i) for i in range(5_000)], 2) == "0, 1 and 4,998 more"
