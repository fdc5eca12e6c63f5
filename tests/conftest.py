"""Fixtures for all tests: the checkout, a bundle with random weights, and official files with seeded weights."""

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tokenizers.pre_tokenizers import ByteLevel

from foley import schedule
from foley.manifest import ClapTextConfig, Manifest
from foley_export.networks import NETWORKS
from foley_export.weights import seeded_tensor
from harness.postgres import Postgres, postgres

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # for sessions in this process; must be set before the import

if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    # A worker and its servers keep to their cores: threads of one that wait for those of another lose most of the time.
    cores = sorted(os.sched_getaffinity(0))
    share = cores[int(worker.removeprefix("gw")) :: int(os.environ["PYTEST_XDIST_WORKER_COUNT"])] or cores
    os.sched_setaffinity(0, share)
    torch.set_num_threads(len(share))

# When the suite runs in the background or under nohup, its subprocesses would inherit ignored signals.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

REPOSITORY = Path(__file__).resolve().parents[1]
SALT = "import:"
STAGES = {
    "--raft": ("optical_flow",),
    "--bn-inception": ("rgb_features", "flow_features"),
    "--video2rms": ("video2rms",),
    "--rms2sound": ("clap_text", "clap_audio", "denoiser", "vae_decoder", "vocoder"),
}
StateDicts = dict[str, dict[str, torch.Tensor]]


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres]:
    """A running Postgres, shared by the tests of a worker; each creates a database."""
    with postgres() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgres"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of an empty store of jobs, on SQLite and on Postgres."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/jobs.sqlite"
    return str(request.getfixturevalue("postgres_server").database())


@pytest.fixture(scope="session")
def tiny_bundle() -> Path:
    """The bundle `tiny`: small, random weights, up-to-date graphs."""
    subprocess.run(["make", "--silent", "bundle"], cwd=REPOSITORY, check=True)
    return REPOSITORY / "bundles" / "tiny"


@pytest.fixture(scope="session")
def state_dicts() -> Callable[[Manifest], StateDicts]:
    """`state_dicts(manifest)`: the tensors of each official file by option, unused ones included."""

    def make(manifest: Manifest) -> StateDicts:
        files: StateDicts = {}
        for option, stages in STAGES.items():
            tensors = files[option] = {}
            for stage in stages:
                network = NETWORKS[stage](manifest)
                for key, tensor in network.state_dict().items():
                    name = network.checkpoint_key(key)
                    weights = seeded_tensor(name, network.checkpoint_shape(key), SALT)
                    tensors[name] = torch.from_numpy(weights) if tensor.is_floating_point() else tensor
        files["--bn-inception"]["fc_action.weight"] = torch.ones(3, 4)
        for key, tensor in files["--bn-inception"].items():
            if "_bn." in key and tensor.dim():
                files["--bn-inception"][key] = tensor[None]  # as published
        files["--rms2sound"] |= {
            "betas": torch.from_numpy(schedule.betas()).float(),
            "alphas_cumprod": torch.from_numpy(schedule.alphas_cumprod()).float(),
            "posterior_mean_coef1": torch.ones(1000),
            "logvar": torch.zeros(1000),
            "scale_factor": torch.tensor(0.75),
            "model_ema.decay": torch.tensor(0.9999),
            "model_ema.diffusion_modelout2weight": torch.ones(2, 2),
            "first_stage_model.encoder.conv_in.weight": torch.ones(2, 2),
            "first_stage_model.quant_conv.bias": torch.ones(2),
            "clap.model.logit_scale_a": torch.tensor(1.0),
            "cond_stage_models.0.model.logit_scale_t": torch.tensor(1.0),
            "cond_stage_models.0.model.text_branch.embeddings.position_ids": torch.arange(5)[None],
        }
        return files

    return make


@pytest.fixture(scope="session")
def write_tokenizer() -> Callable[[Path, ClapTextConfig], Path]:
    """`write_tokenizer(folder, config)`: RoBERTa's `vocab.json` and `merges.txt` for a vocabulary of any size."""

    def make(folder: Path, config: ClapTextConfig) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        letters = sorted(ByteLevel.alphabet())
        tokens = ["<s>", "<pad>", "</s>", "<unk>", *letters]
        first = [*"etaoin", *(letter for letter in letters if letter not in "etaoin")]
        merges = [(a, b) for a in first for b in letters][: config.vocabulary - len(tokens) - 1]
        tokens += [a + b for a, b in merges] + ["<mask>"]
        assert len(tokens) == config.vocabulary
        (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
        (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
        return folder

    return make


@pytest.fixture(scope="session")
def published(tmp_path_factory, state_dicts, write_tokenizer) -> Callable[..., tuple[dict[str, Path], Path]]:
    """`published(manifest, without=())`: the official files by option, and the folder of the tokenizer.

    Keys of the RMS2Sound file that start with a prefix in `without` are omitted.
    """

    def make(manifest: Manifest, without: tuple[str, ...] = ()) -> tuple[dict[str, Path], Path]:
        folder = tmp_path_factory.mktemp("published")
        paths = {}
        for option, tensors in state_dicts(manifest).items():
            kept = {key: tensor for key, tensor in tensors.items() if not key.startswith(tuple(without) or "\0")}
            paths[option] = folder / f"{option.strip('-')}.pth"
            torch.save(wrapped(option, kept), paths[option])
        return paths, write_tokenizer(folder / "roberta", manifest.clap_text)

    return make


def wrapped(option: str, tensors: dict[str, torch.Tensor]) -> dict[str, object]:
    """Return `tensors` in the structure of the official file of `option`."""
    if option == "--video2rms":
        return {"epoch": 500, "learning_rate": 1e-3, "optimizer_Video2RMS": tensors}
    return {"state_dict": tensors, "global_step": 300_000} if option == "--rms2sound" else dict(tensors)
