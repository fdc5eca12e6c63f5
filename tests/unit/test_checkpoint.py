"""Files of weights are read as tensors or refused with one sentence; nothing in them runs."""

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
    """Its pickle creates a file when it is loaded."""

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
    ids=["plain", "ordered", "parameters", "Lightning's", "Video2RMS'", "parallel", "with notes"],
)
def test_the_shells_of_published_files_are_opened(tmp_path, content, others, old):
    torch.save(content, tmp_path / "weights.pth", _use_new_zipfile_serialization=not old)
    found = read(tmp_path / "weights.pth")
    assert same(found.tensors)
    assert found.others == others
    assert not any(tensor.requires_grad for tensor in found.tensors.values())


def test_safetensors_are_told_by_their_content(tmp_path):
    save_file(WEIGHTS, tmp_path / "weights.pth")
    found = read(tmp_path / "weights.pth").tensors
    assert all(torch.equal(found[key], WEIGHTS[key]) for key in WEIGHTS)


def test_a_large_file_is_mapped_and_not_read(tmp_path):
    torch.save({"a": torch.zeros(1000).expand(4, 1000)}, tmp_path / "weights.pth")
    assert (tmp_path / "weights.pth").stat().st_size < 10_000
    assert read(tmp_path / "weights.pth").tensors["a"].shape == (4, 1000)


@pytest.mark.parametrize("form", ["torch", "old torch", "pickle", "old pickle"])
@pytest.mark.filterwarnings("error")
def test_a_pickle_with_code_in_it_is_refused_and_not_run(tmp_path, form):
    content = {**WEIGHTS, "harm": Harmful(tmp_path / "harm")}
    path = tmp_path / "weights.pth"
    if form == "pickle":
        path.write_bytes(pickle.dumps(content))
    elif form == "old pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "torch")
    with pytest.raises(CheckpointError) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert "weights_only" not in str(caught.value)  # torch's advice how to run the code after all
    if "torch" in form:
        assert "posix.mkdir" in str(caught.value)
    assert not (tmp_path / "harm").exists()


def test_objects_that_are_not_tensors_are_refused_by_name(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pth")
    with pytest.raises(CheckpointError, match=r"rejected: it contains torch\.nn\.modules\.linear\.Linear"):
        read(tmp_path / "module.pth")


def cut(path: Path, old: bool, share: float) -> None:
    torch.save({"a": torch.ones(30_000)}, path, _use_new_zipfile_serialization=not old)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])


def zipped(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "text")


def cut_safetensors(path: Path) -> None:
    save_file(WEIGHTS, path)
    path.write_bytes(path.read_bytes()[:-4])


UNREADABLE = {
    "missing": lambda path: None,
    "a folder": lambda path: path.mkdir(),
    "a pipe": lambda path: os.mkfifo(path),
    "a link to nothing": lambda path: path.symlink_to("nothing"),
    "empty": lambda path: path.touch(),
    "a web page": lambda path: path.write_text("<!DOCTYPE html><html>Not found</html>"),
    "a pointer of Git LFS": lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\n"),
    "an array of numpy": lambda path: np.save(path.open("wb"), np.ones(3)),
    "an archive": zipped,
    "a script": lambda path: torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path),
    "cut off": lambda path: cut(path, False, 0.5),
    "cut at its end": lambda path: cut(path, False, 0.999),
    "cut at its start": lambda path: cut(path, False, 0.0001),
    "cut off, old": lambda path: cut(path, True, 0.5),
    "cut at its start, old": lambda path: cut(path, True, 0.001),
    "cut safetensors": cut_safetensors,
    "safetensors of rubbish": lambda path: path.write_bytes((5).to_bytes(8, "little") + b"{abcd"),
    "a list": lambda path: torch.save([torch.ones(1)], path),
    "a tensor": lambda path: torch.save(torch.ones(1), path),
    "no tensors": lambda path: torch.save({"epoch": 3}, path),
    "nothing": lambda path: torch.save({}, path),
    "an optimizer": lambda path: torch.save({"state": {0: {"step": torch.ones(1)}}, "param_groups": []}, path),
}


@pytest.mark.parametrize("write", UNREADABLE.values(), ids=UNREADABLE.keys())
def test_what_is_no_checkpoint_is_refused_with_one_sentence(tmp_path, write):
    path = tmp_path / "weights.pth"
    write(path)
    with pytest.raises(CheckpointError) as caught:
        read(path)
    message = str(caught.value)
    assert str(path) in message
    assert message[0].islower() or message.startswith(str(path))
    assert not message.endswith(".")
    assert "\n" not in message


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), form=st.sampled_from(["new", "old", "safetensors"]))
def test_a_damaged_file_is_read_or_refused_but_never_worse(tmp_path, data, form):
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


def test_an_archive_that_says_it_goes_on_elsewhere_is_damaged(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(WEIGHTS, path)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"PK\x06\x07\0", b"PK\x06\x07\1"))
    assert path.read_bytes() != content
    with pytest.raises(CheckpointError, match="damaged"):
        read(path)


def test_names_that_would_upset_a_terminal_are_quoted():
    assert shorten(["a\x1b[2J", "b"]) == r"'a\x1b[2J', b"
    assert shorten([str(i) for i in range(5_000)], 2) == "0, 1 and 4,998 more"
