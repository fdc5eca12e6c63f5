"""Training on an accelerator: every tensor of a step is on the run's device.

The device is PyTorch's `meta`, which has shapes but no values, so the tests need no accelerator.
"""

import contextlib
from collections.abc import Iterator
from functools import partialmethod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from foley import clip
from foley.manifest import DisFlowConfig
from foley_export.presets import PRESETS, TINY
from foley_training import feature_rows
from foley_training.config import LoopConfig, TrainingConfig
from foley_training.run import STAGES, Run, train_stage
from foley_training.stages import vocoder
from foley_training.stages.diffusion import Diffusion
from foley_training.videos import PAIRS

CPU, META = torch.device("cpu"), torch.device("meta")
LOOP = LoopConfig(steps=1, batch=2, warm_up=1)
CONFIG = TrainingConfig(
    preset="tiny",
    sounds=2,
    videos=1,
    pictured_videos=1,
    validation=2,
    validation_videos=1,
    **dict.fromkeys(STAGES, LOOP),
)

aten = torch.ops.aten
_TRANSFERS = (aten._to_copy.default, aten.copy_.default)
_NETWORK_OPERATIONS = (aten.convolution.default, aten.mm.default, aten.addmm.default, aten.bmm.default)


class Accelerator(TorchDispatchMode):
    """Makes `meta` behave like an accelerator.

    An operation on tensors of two devices raises, also where PyTorch allows it on `meta` (convolution, indexing).
    An operation of a network on the CPU raises, too. Values that are read back are invented: 1, or 0 to 1 in a tensor.
    """

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        devices = {tensor.device.type for tensor in tensors}
        if len(devices) > 1 and function not in _TRANSFERS:
            raise AssertionError(f"{function} takes tensors on several devices: {sorted(devices)}")
        if devices == {"cpu"} and function in _NETWORK_OPERATIONS:
            raise AssertionError(f"{function} runs on the CPU")
        if function is aten.copy_.default and "meta" in devices and args[0].device == CPU:
            return args[0]  # as if it already held these values
        if devices == {"meta"}:
            if function is aten._local_scalar_dense.default:
                return 1
            if function is aten._to_copy.default and kwargs.get("device") == CPU:
                values = torch.linspace(0, 1, args[0].numel()).reshape(args[0].shape)
                return values.to(kwargs.get("dtype") or args[0].dtype)
            if function is aten.index.Tensor and args[1][0].dtype == torch.bool:
                return args[0].flatten(0, args[1][0].ndim - 1)  # as if the mask were true everywhere
        return function(*args, **kwargs)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a run with all caches and the initial weights of every stage as checkpoints; made on the CPU.

    Feature rows are random: rendering and encoding their frames takes long, and a separate test computes some.
    """
    folder = tmp_path_factory.mktemp("work")
    random = np.random.default_rng(0)
    (folder / "cache").mkdir()
    for split in ("train", "validation"):
        rows = random.standard_normal((1, PAIRS, TINY.features_width)).astype(np.float16)
        np.save(folder / "cache" / f"{split}-1-features.npy", rows)
        np.save(folder / "cache" / f"{split}-1-rms.npy", random.random((1, clip.CLIP_CLASSES), np.float32))
    video2rms = TINY.video2rms.model_copy(update={"lstm_layers": 1})  # `meta` runs an LSTM step by step
    preset = TINY.model_copy(update={"optical_flow": DisFlowConfig(), "video2rms": video2rms})
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "tiny", preset)
        run = Run(CONFIG, folder, CPU)
        for stage, make in STAGES.items():
            torch.save({"averaged": make(run).networks.state_dict()}, folder / f"{stage}.pt")
        yield folder


@pytest.fixture
def accelerator(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`meta` as an accelerator; it has neither autocast nor a fused optimiser, which change no placement.

    The only step of the vocoder includes the discriminators, and validation repeats the same operations less often.
    """
    monkeypatch.setattr(vocoder, "GAN_START", 0.0)
    monkeypatch.setattr(Diffusion, "sample_clips", partialmethod(Diffusion.sample_clips, clips=1, steps=2))
    adamw = torch.optim.AdamW
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(torch.optim, "AdamW", lambda *args, fused, **kwargs: adamw(*args, **kwargs))
    with Accelerator():
        yield


def _linked(work: Path, folder: Path, *excluded: str) -> Path:
    """Link the files of `work` into `folder`, except those that match a pattern in `excluded`."""
    for path in work.rglob("*.*"):
        if not any(path.match(pattern) for pattern in excluded):
            link = folder / path.relative_to(work)
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(path)
    return folder


@pytest.mark.parametrize("stage", STAGES)
def test_stage_trains_on_run_device(work, tmp_path, stage, accelerator):
    folder = _linked(work, tmp_path, f"{stage}.pt")
    train_stage(Run(CONFIG, folder, META), stage)
    saved = torch.load(folder / f"{stage}.pt", weights_only=True)
    assert saved["step"] == LOOP.steps
    assert {value.device for part in ("networks", "averaged") for value in saved[part].values()} == {META}


def test_latents_are_encoded_on_run_device(work, tmp_path, accelerator):
    folder = _linked(work, tmp_path, "*-mean.npy", "*-deviation.npy", "*-embeddings.npy")
    train, validation = Run(CONFIG, folder, META).latents()
    assert [len(latents.embeddings) for latents in (train, validation)] == [CONFIG.sounds, CONFIG.validation]


def test_features_are_computed_on_run_device(work, tmp_path, accelerator, monkeypatch):
    monkeypatch.setattr(feature_rows, "PAIRS", 4)  # of 299 in a clip
    folder = _linked(work, tmp_path, "*-features.npy")
    task = Run(CONFIG, folder, META).video2rms()
    assert len(task.train_set.features) == CONFIG.videos
