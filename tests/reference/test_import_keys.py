"""The official files as they are listed: every one of their tensors is used or known by what it is."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch

from foley import schedule
from foley_export.import_plan import Files, plan
from foley_export.presets import PAPER

LISTS = {
    "--rms2sound": ("rms2sound.json.gz", "rms2sound_ema.json.gz"),
    "--video2rms": ("video2rms.json",),
    "--bn-inception": ("bn_inception.json",),
    "--raft": ("raft_large.json",),
}
NAMES = {"--rms2sound": "ControlNetstep300000.pth", "--video2rms": "checkpoint_000500_Video2RMS.pt"}
VOCABULARY = {token: i for i, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", *map(str, range(50_260)), "<mask>"])}
UNUSED = {  # by name and number, so that nothing moves from used to unused unseen
    "--rms2sound": {
        "EMA copies": 1024,
        "noise schedule": 13,
        "scale factor (kept in the manifest)": 1,
        "VAE encoder": 90,
        "CLAP for ranking": 506,
        "CLAP front-end constants": 5,
        "CLAP attention masks": 5,
        "CLAP heads for training": 14,
        "counters": 1,
    },
    "--video2rms": {"counters": 3},
    "--bn-inception": {"counters": 69},
    "--raft": {"counters": 15},
}
POSITIONS = "model.text_branch.embeddings.position_ids"
FRONT_END = ("spectrogram_extractor", "logmel_extractor", "mel_transform", "attn_mask")

Tensors = dict[str, torch.Tensor]
Write = Callable[[Iterable[str], Tensors], Files]


@pytest.fixture(scope="module")
def listed(checkpoint_keys) -> dict[str, Tensors]:
    """By option, the tensors of the official file; each is one number, repeated without being stored."""
    files = {
        option: {
            key: torch.zeros((), dtype=getattr(torch, what["dtype"])).expand(what["shape"])
            for name in names
            for key, what in checkpoint_keys(name).items()
        }
        for option, names in LISTS.items()
    }
    files["--rms2sound"] |= {
        "betas": torch.from_numpy(schedule.betas()).float(),
        "alphas_cumprod": torch.from_numpy(schedule.alphas_cumprod()).float(),
        "scale_factor": torch.tensor(PAPER.vae_decoder.scale_factor),
    }
    return files


@pytest.fixture
def write(listed, tmp_path: Path) -> Write:
    """`write(without, more)`: the official files; the RMS2Sound file lacks the keys `without` and holds `more`."""

    def make(without: Iterable[str] = (), more: Tensors | None = None) -> Files:
        paths = {}
        for option, tensors in listed.items():
            content: dict[str, object] = dict(tensors)
            if option == "--rms2sound":
                content = {key: tensor for key, tensor in tensors.items() if key not in set(without)} | (more or {})
            if option == "--video2rms":
                content = {"epoch": 500, "learning_rate": 1e-3, "optimizer_Video2RMS": content}
            paths[option] = tmp_path / NAMES.get(option, f"{option.strip('-')}.pth")
            torch.save(content, paths[option])
        (tmp_path / "vocab.json").write_text(json.dumps(VOCABULARY))
        (tmp_path / "merges.txt").write_text("#version: 0.2\n")
        return Files(paths, tmp_path)

    return make


def test_every_official_tensor_is_accounted_for(write, listed):
    official = write()
    planned = plan(PAPER, official)  # nothing missing, nothing of the wrong shape, nothing unexpected
    assert planned.manifest == PAPER  # whose sizes are the ones that the files show
    for option, path in official.checkpoints.items():
        used = {
            origin.key
            for origins in planned.origins.values()
            for origin in origins.values()
            if origin.file.path == path
        }
        unused = dict(planned.unused[path])
        assert unused.pop("non-tensor values", 0) == (2 if option == "--video2rms" else 0)
        assert unused == UNUSED[option]
        assert len(used) + sum(unused.values()) == len(listed[option])


def test_position_ids_of_both_claps_are_dropped(write):
    positions = torch.arange(514)[None]
    official = write(more={f"cond_stage_models.0.{POSITIONS}": positions, f"clap.{POSITIONS}": positions})
    planned = plan(PAPER, official)
    added = {"counters": 2, "CLAP for ranking": 507}
    assert planned.unused[official.checkpoints["--rms2sound"]] == UNUSED["--rms2sound"] | added


def test_what_a_published_file_may_lack_is_not_missed(write, listed):
    """README: `clap.*`, schedule buffers, front-end constants; EMA copies are there or not."""
    absent = [
        key
        for key in listed["--rms2sound"]
        if key.startswith(("clap.", "model_ema."))
        or ("." not in key and key != "scale_factor")
        or any(part in key for part in FRONT_END)
    ]
    official = write(without=absent)
    planned = plan(PAPER, official)
    left = {"scale factor (kept in the manifest)", "VAE encoder", "CLAP heads for training", "counters"}
    assert planned.unused[official.checkpoints["--rms2sound"]].keys() == left
