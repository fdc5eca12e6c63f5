"""The official files as they are listed: every one of their tensors is used or known by what it is."""

import json

import pytest
import torch

from foley import schedule
from foley_export.import_plan import Files, plan
from foley_export.presets import PAPER

LISTS = {
    "--rms2sound": "rms2sound.json.gz",
    "--video2rms": "video2rms.json",
    "--bn-inception": "bn_inception.json",
    "--raft": "raft_large.json",
}
VOCABULARY = {token: i for i, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", *map(str, range(50_260)), "<mask>"])}
UNUSED = {  # by name and number, so that nothing moves from used to unused unseen
    "--rms2sound": {
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


@pytest.fixture(scope="module")
def official(checkpoint_keys, tmp_path_factory):
    """Files with the official keys and shapes; every tensor is one number, repeated without being stored."""
    folder = tmp_path_factory.mktemp("official")
    paths = {}
    for option, name in LISTS.items():
        tensors = {
            key: torch.zeros((), dtype=getattr(torch, what["dtype"])).expand(what["shape"])
            for key, what in checkpoint_keys(name).items()
        }
        if option == "--rms2sound":
            tensors["betas"] = torch.from_numpy(schedule.betas()).float()
            tensors["alphas_cumprod"] = torch.from_numpy(schedule.alphas_cumprod()).float()
            tensors["scale_factor"] = torch.tensor(PAPER.vae_decoder.scale_factor)
        paths[option] = folder / f"{option.strip('-')}.pth"
        torch.save(tensors, paths[option])
    (folder / "vocab.json").write_text(json.dumps(VOCABULARY))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return Files(paths, folder)


def test_every_official_tensor_is_accounted_for(official, checkpoint_keys):
    planned = plan(PAPER, official)  # nothing missing, nothing of the wrong shape, nothing unexpected
    assert planned.manifest == PAPER  # whose sizes are the ones that the files show
    for option, path in official.checkpoints.items():
        used = {
            origin.name
            for origins in planned.origins.values()
            for origin in origins.values()
            if origin.part.layout.option == option
        }
        assert planned.unused[path] == UNUSED[option]
        assert len(used) + sum(UNUSED[option].values()) == len(checkpoint_keys(LISTS[option]))
