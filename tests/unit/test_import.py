"""`foley-export import`: weights are preserved bit for bit, and all problems of the files are reported together."""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import RobertaTokenizer
from typer.testing import CliRunner

from foley import bundle as bundles
from foley.errors import CheckpointError, OutputError
from foley.stages import weighted_networks
from foley_export import importer, video2rms_opts
from foley_export.cli import app
from foley_export.import_plan import Files, plan
from foley_export.networks import NETWORKS
from foley_export.presets import TINY
from foley_export.weights import fill

SALT = "import:"


@pytest.fixture(scope="module")
def official(published):
    """The files of a complete import at tiny sizes."""
    paths, tokenizer = published(TINY)
    return Files(paths, tokenizer)


@pytest.fixture(scope="module")
def imported(official, tmp_path_factory):
    """The bundle imported from these files."""
    root = tmp_path_factory.mktemp("bundles") / "imported"
    assert list(importer.write(plan(TINY, official), root)) == list(weighted_networks(TINY))
    return bundles.read(root)


def changed(official: Files, tmp_path: Path, option: str, change) -> Files:
    """Return `official` with one file whose state dict is modified in place by `change`."""
    content = torch.load(official.checkpoints[option], weights_only=True)
    tensors = content.get("state_dict", content.get("optimizer_Video2RMS", content))
    change(tensors)
    path = tmp_path / official.checkpoints[option].name
    torch.save(content, path)
    return replaced(official, option, path)


def replaced(official: Files, option: str, path: Path) -> Files:
    return Files({**official.checkpoints, option: path}, official.tokenizer, official.opts)


def import_error(files: Files) -> str:
    """Return the error of `plan` for the files."""
    with pytest.raises(CheckpointError) as raised:
        plan(TINY, files)
    return str(raised.value)


@pytest.mark.parametrize("stage", NETWORKS)
def test_weights_are_preserved_bit_for_bit(imported, stage):
    weights = load_file(imported.path(bundles.weights_file(stage)))
    expected = fill(NETWORKS[stage](TINY), SALT).state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[key], tensor) for key, tensor in expected.items())


def test_manifest_lists_sources(imported, official):
    bundles.verify(imported)
    sources = {source.name: source.sha256 for source in imported.manifest.sources}
    assert sources == {
        path.name: bundles.file_sha256(path)
        for path in (
            *official.checkpoints.values(),
            official.tokenizer / "vocab.json",
            official.tokenizer / "merges.txt",
        )
    }
    assert imported.manifest.vae_decoder.scale_factor == 0.75
    like_tiny = imported.manifest.model_copy(update={"sources": (), "files": {}, "vae_decoder": TINY.vae_decoder})
    assert like_tiny == TINY


def test_unused_tensors_are_counted_by_category(official):
    unused = {path.name: groups for path, groups in plan(TINY, official).unused.items()}
    assert unused["bn-inception.pth"] == {"classifier": 1, "counters": 69}
    assert unused["video2rms.pth"] == {"non-tensor values": 2, "counters": 3}
    assert unused["raft.pth"] == {"counters": 15}
    assert unused["rms2sound.pth"] == {
        "non-tensor values": 1,
        "noise schedule": 4,
        "scale factor (kept in the manifest)": 1,
        "EMA copies": 2,
        "VAE encoder": 2,
        "CLAP for ranking": 1,
        "CLAP heads for training": 1,
        "counters": 2,
    }


def test_optional_tensors_may_be_missing(official, tmp_path):
    def change(tensors):
        for key in [
            key
            for key in tensors
            if (key != "scale_factor" and "." not in key) or key.startswith("clap.") or "relative_position_i" in key
        ]:
            del tensors[key]

    plan(TINY, changed(official, tmp_path, "--rms2sound", change))

    def remove_counters(tensors):
        for key in [key for key in tensors if key.endswith("num_batches_tracked")]:
            del tensors[key]

    plan(TINY, changed(official, tmp_path, "--bn-inception", remove_counters))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_other_precision_are_stored_as_float32(official, tmp_path, dtype):
    def change(tensors):
        tensors |= {key: tensor.to(dtype) for key, tensor in tensors.items() if tensor.is_floating_point()}

    files = changed(official, tmp_path, "--video2rms", change)
    list(importer.write(plan(TINY, files), tmp_path / "bundle"))
    weights = load_file(tmp_path / "bundle" / bundles.weights_file("video2rms"))
    for key, tensor in fill(NETWORKS["video2rms"](TINY), SALT).state_dict().items():
        assert torch.equal(weights[key], tensor if tensor.dtype == torch.int64 else tensor.to(dtype).float())


def test_safetensors_parallel_and_old_files_are_read(official, tmp_path):
    content = torch.load(official.checkpoints["--raft"], weights_only=True)
    prefixed = {f"module.{key}": tensor for key, tensor in content.items()}
    save_file(prefixed, tmp_path / "raft.bin")
    torch.save(content, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for path in (tmp_path / "raft.bin", tmp_path / "old.pth"):
        origins = plan(TINY, replaced(official, "--raft", path)).origins["optical_flow"]
        assert all(torch.equal(file.tensors[name], content[name]) for file, name in origins.values())


# --- invalid tensors -----------------------------------------------------------------------------------------------


def test_all_problems_are_reported_together(official, tmp_path):
    def add(tensors):
        tensors["encoder.novelty"] = torch.ones(1)

    def reshape(tensors):
        tensors["inception_3a_1x1.bias"] = torch.ones(7)
        tensors["conv1_7x7_s2.bias"] = torch.ones(2, dtype=torch.int64)

    files = changed(official, tmp_path, "--raft", lambda tensors: tensors.pop("update_block.flow_head.conv1.bias"))
    files = changed(files, tmp_path, "--video2rms", add)
    files = changed(files, tmp_path, "--bn-inception", reshape)
    (tmp_path / "broken.pth").write_bytes(b"PK\3\4")
    files = replaced(files, "--rms2sound", tmp_path / "broken.pth")
    files = Files(files.checkpoints, tmp_path / "nowhere")
    message = import_error(files)
    assert "raft.pth lacks tensors of optical_flow: update_block.flow_head.conv1.bias" in message
    assert "video2rms.pth has unexpected tensors: encoder.novelty" in message
    assert "inception_3a_1x1.bias has shape [7] instead of [2]" in message
    assert "conv1_7x7_s2.bias is int64 instead of float32" in message
    assert "broken.pth is truncated" in message
    assert f"there is no tokenizer in {tmp_path / 'nowhere'}" in message
    assert message.startswith("the files have 5 problems; fix all of them:\n- ")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_missing_misshapen_and_unexpected_tensors_are_named(official, tmp_path, data):
    needed = sorted(
        key for key in torch.load(official.checkpoints["--raft"], weights_only=True) if "num_batches" not in key
    )
    some = st.sets(st.sampled_from(needed), max_size=3)
    missing, misshapen = data.draw(some), data.draw(some)
    added = {f"{key}.extra" for key in data.draw(some)}

    def change(tensors):
        for key in misshapen:
            tensors[key] = torch.zeros(*tensors[key].shape, 2)
        for key in missing:
            del tensors[key]
        tensors |= dict.fromkeys(added, torch.zeros(1))

    files = changed(official, tmp_path, "--raft", change)
    if not missing | misshapen | added:
        plan(TINY, files)
        return
    message = import_error(files)
    assert {key for key in (*needed, *added) if re.search(rf"{re.escape(key)}(,| has shape|$|\n)", message)} == (
        missing | misshapen | added
    )


def test_rejects_missing_scale_factor(official, tmp_path):
    """The factor that the weights were trained with cannot be known."""
    message = import_error(changed(official, tmp_path, "--rms2sound", lambda tensors: tensors.pop("scale_factor")))
    assert message.endswith("rms2sound.pth lacks scale_factor, by which latents are divided; download it again")


TEXT_POSITIONS = "model.text_branch.embeddings.position_ids"


@pytest.mark.parametrize("clap", ["cond_stage_models.0", "clap"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.float32, torch.float16])
def test_position_ids_must_be_consecutive(official, tmp_path, clap, dtype):
    def add(positions):
        return changed(
            official, tmp_path, "--rms2sound", lambda tensors: tensors.update({f"{clap}.{TEXT_POSITIONS}": positions})
        )

    plan(TINY, add(torch.arange(514, dtype=dtype)[None]))
    for other in (torch.arange(1, 515, dtype=dtype)[None], torch.zeros(1, 514, dtype=dtype)):
        assert f"its {clap}.{TEXT_POSITIONS} are not 0, 1, 2, ..." in import_error(add(other))


@pytest.mark.parametrize("key", ["model_ema.novelty", "first_stage_model.loss.logvar", "model_ema.model.out.2.weight"])
def test_unexpected_tensor_is_named(official, tmp_path, key):
    message = import_error(
        changed(official, tmp_path, "--rms2sound", lambda tensors: tensors.update({key: torch.ones(2)}))
    )
    assert message.endswith(f"rms2sound.pth has unexpected tensors: {key}")


def test_long_lists_of_tensors_are_shortened(official, tmp_path):
    def change(tensors):
        tensors |= {f"novelty.{i}": torch.zeros(1) for i in range(5_000)}

    message = import_error(changed(official, tmp_path, "--rms2sound", change))
    assert "rms2sound.pth has unexpected tensors: novelty.0, " in message
    assert message.endswith("and 4,992 more")
    assert len(message) < 500


def test_rejects_weights_that_are_not_finite(official, tmp_path):
    def change(tensors):
        tensors["first_stage_model.vocoder.conv_post.bias"][0] = torch.nan

    planned = plan(TINY, changed(official, tmp_path, "--rms2sound", change))
    with pytest.raises(CheckpointError, match=r"vocoder\.conv_post\.bias .* not finite"):
        list(importer.write(planned, tmp_path / "bundle"))
    assert [path.name for path in tmp_path.iterdir()] == ["rms2sound.pth"]


def test_rejects_table_of_another_network(official, tmp_path):
    def change(tensors):
        key = next(key for key in tensors if key.endswith("relative_position_index"))
        tensors[key] = tensors[key] + 1

    planned = plan(TINY, changed(official, tmp_path, "--rms2sound", change))
    with pytest.raises(CheckpointError, match="relative_position_index"):
        list(importer.write(planned, tmp_path / "bundle"))
    assert not (tmp_path / "bundle").exists()


def test_existing_folder_is_not_modified(official, tmp_path):
    (tmp_path / "bundle").mkdir()
    with pytest.raises(OutputError):
        list(importer.write(plan(TINY, official), tmp_path / "bundle"))
    assert not list((tmp_path / "bundle").iterdir())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("betas", torch.linspace(1e-4, 0.02, 1000)),
        ("alphas_cumprod", torch.linspace(1, 0, 500)),
        ("scale_factor", torch.tensor(-1.0)),
        ("scale_factor", torch.tensor(torch.nan)),
        ("scale_factor", torch.ones(2)),
    ],
)
def test_rejects_other_noise_schedule_or_scale_factor(official, tmp_path, key, value):
    assert key in import_error(changed(official, tmp_path, "--rms2sound", lambda tensors: tensors.update({key: value})))


# --- other models ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "other"),
    [
        ("--rms2sound", "--video2rms"),
        ("--video2rms", "--rms2sound"),
        ("--bn-inception", "--raft"),
        ("--raft", "--bn-inception"),
    ],
)
def test_swapped_files_are_detected(official, option, other):
    message = import_error(replaced(official, option, official.checkpoints[other]))
    assert message.startswith(f"{official.checkpoints[other]} is not ")
    assert f"which is passed as {other}" in message


OTHERS = {
    "diffusers' UNet of AudioLDM": (
        "down_blocks.0.resnets.0.conv1.weight",
        "time_embedding.linear_1.bias",
        "class_embedding.bias",
    ),
    "a UNet of diffusers other than AudioLDM's": (
        "down_blocks.0.resnets.0.conv1.weight",
        "time_embedding.linear_1.bias",
    ),
    "diffusers' AutoencoderKL": ("decoder.up_blocks.0.resnets.0.conv1.bias", "post_quant_conv.bias"),
    "transformers' SpeechT5HifiGan": ("conv_pre.bias", "upsampler.0.weight", "resblocks.0.convs1.0.bias"),
    "transformers' ClapModel": ("text_model.pooler.dense.bias", "text_projection.linear1.bias"),
    "HiFi-GAN as its authors published it": ("generator.ups.0.weight_g", "generator.resblocks.0.convs1.0.bias"),
    "CLAP as LAION published it": ("module.text_branch.pooler.dense.bias", "other"),
    "RAFT as its authors published it": ("module.fnet.conv1.weight", "module.cnet.conv1.weight"),
    "torchvision's raft_small": ("feature_encoder.convnormrelu.0.weight", "update_block.flow_head.conv1.bias"),
    "an AudioLDM checkpoint without RMS-ControlNet": ("model.diffusion_model.film_emb.weight", "betas"),
    "a latent diffusion checkpoint": ("model.diffusion_model.input_blocks.0.0.weight", "betas"),
    "the variant of Video2RMS without LSTM": ("encoder.MLP.0.weight",),
    "a VAE of latent diffusion": ("decoder.up.0.block.0.conv1.bias",),
    "a BERT or RoBERTa model": ("roberta.encoder.layer.0.attention.self.query.bias",),
    "a ResNet": ("conv1.weight", "layer1.0.conv1.weight", "layer4.0.conv1.weight"),
    "no known model: vgg.0.bias": ("vgg.0.bias",),
}


@pytest.mark.parametrize(("description", "keys"), OTHERS.items(), ids=OTHERS.keys())
@pytest.mark.parametrize("option", ["--rms2sound", "--raft"])
def test_checkpoint_of_another_model_is_identified(official, tmp_path, option, description, keys):
    torch.save(dict.fromkeys(keys, torch.zeros(1)), tmp_path / "other.pth")
    message = import_error(replaced(official, option, tmp_path / "other.pth"))
    assert description in message
    assert "\n" not in message  # one problem instead of thousands of missing keys


# --- sizes of Video2RMS ----------------------------------------------------------------------------------------

OPTS = {
    "model": {
        "encoder_embedding_dim": TINY.features_width,
        "encoder_kernel_size": 5,
        "encoder_n_convolutions": 3,
        "encoder_n_lstm": 2,
    },
    "data": {"video_samples": 300, "audio_samples": 10, "rms_samples": 1250, "rms_num_bins": 64, "rms_mu": 63},
    "train": {"epochs": 600},
}


def with_opts(official: Files, path: Path, opts: object) -> Files:
    path.write_text(opts if isinstance(opts, str) else yaml.safe_dump(opts))
    return Files(official.checkpoints, official.tokenizer, path)


def test_sizes_are_derived_from_weights(official, tmp_path, state_dicts):
    other = TINY.video2rms.model_copy(update={"lstm_layers": 1, "convolutions": 2, "kernel": 3, "classes": 32})
    tensors = state_dicts(TINY.model_copy(update={"video2rms": other}))["--video2rms"]
    torch.save(tensors, tmp_path / "video2rms.pt")
    files = replaced(official, "--video2rms", tmp_path / "video2rms.pt")
    assert plan(TINY, files).manifest.video2rms == other


def test_matching_options_are_listed_as_source(official, tmp_path):
    planned = plan(TINY, with_opts(official, tmp_path / "opts.yml", OPTS))
    assert planned.manifest.video2rms == TINY.video2rms
    assert tmp_path / "opts.yml" in planned.sources


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("model", "encoder_n_lstm", 3),
        ("model", "encoder_embedding_dim", 2048),
        ("data", "rms_num_bins", 32),
        ("data", "rms_discretize", False),
        ("data", "rms_min", 0.1),
    ],
)
def test_rejects_options_that_contradict_weights(official, tmp_path, section, key, value):
    opts = {**OPTS, section: {**OPTS[section], key: value}}
    message = import_error(with_opts(official, tmp_path / "opts.yml", opts))
    assert f"{section}.{key} is {value} instead of" in message


@pytest.mark.parametrize(
    "text",
    ["", "[]", "a: b", "model: 1\ndata: 2", "{", "a: !!python/object/apply:os.system ['true']", "[" * 10_000, "\0"],
    ids=range(8),
)
def test_rejects_invalid_options_file(official, tmp_path, text):
    assert "opts.yml" in import_error(with_opts(official, tmp_path / "opts.yml", text))


def test_shapes_without_valid_sizes_are_reported(official, tmp_path):
    def change(tensors):
        tensors["encoder.BiLSTM.weight_hh_l0"] = torch.zeros(3)

    message = import_error(changed(official, tmp_path, "--video2rms", change))
    assert "encoder.BiLSTM.weight_hh_l0 has shape [3]" in message
    assert video2rms_opts.sizes({}) is None


# --- the tokenizer --------------------------------------------------------------------------------------------


def test_tokenizer_matches_roberta(imported, official):
    ours = Tokenizer.from_file(str(imported.path(bundles.TOKENIZER)))
    theirs = RobertaTokenizer.from_pretrained(official.tokenizer)
    for text in ("", "a stick hits metal", "  two  spaces ", "Größe 音", "a </s> b<mask> c", "x" * 300):
        expected = theirs(text, truncation=True, max_length=TINY.clap_text.max_tokens)["input_ids"]
        assert ours.encode(text).ids == expected, text
    short, long = ours.encode_batch(["a", "a stick hits metal"])
    assert set(short.ids[sum(short.attention_mask) :]) == {1}
    assert len(short.ids) == len(long.ids)


def test_tokenizer_json_gives_the_same_tokens(imported, official, tmp_path):
    RobertaTokenizer.from_pretrained(official.tokenizer).save_pretrained(tmp_path / "one")
    assert not (tmp_path / "one" / "vocab.json").exists()
    list(importer.write(plan(TINY, Files(official.checkpoints, tmp_path / "one")), tmp_path / "bundle"))
    ours = Tokenizer.from_file(str(tmp_path / "bundle" / bundles.TOKENIZER))
    other = Tokenizer.from_file(str(imported.path(bundles.TOKENIZER)))
    for text in ("a stick hits metal", "a </s> b <mask> c", ""):
        assert ours.encode(text).ids == other.encode(text).ids


def swap(vocabulary: dict[str, int]) -> None:
    vocabulary["<pad>"], vocabulary["<s>"] = vocabulary["<s>"], vocabulary["<pad>"]


@pytest.mark.parametrize(
    "change",
    [lambda v: v.update(extra=512), lambda v: v.pop("<mask>"), swap, lambda v: v.update({"<mask>": 4000}), dict.clear],
    ids=["larger", "smaller", "other special tokens", "missing ID", "empty"],
)
def test_rejects_other_tokenizer(official, write_tokenizer, tmp_path, change):
    folder = write_tokenizer(tmp_path / "roberta", TINY.clap_text)
    vocabulary = json.loads((folder / "vocab.json").read_text())
    change(vocabulary)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    message = import_error(Files(official.checkpoints, folder))
    assert message.startswith(f"the tokenizer in {folder} ")
    assert "\n" not in message


@pytest.mark.parametrize("content", ["", "{}", "[]", "<html>", '{"version": "1.0", "model": {"type": "WordPiece"}}'])
def test_rejects_damaged_tokenizer(official, tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    assert str(tmp_path) in import_error(Files(official.checkpoints, tmp_path))


# --- the command line -----------------------------------------------------------------------------------------


def test_command_reports_one_error_and_writes_nothing(official, tmp_path, monkeypatch):
    monkeypatch.setenv("FOLEY_CACHE", str(tmp_path / "cache"))
    options = [word for option, path in official.checkpoints.items() for word in (option, str(path))]
    result = CliRunner().invoke(app, ["import", *options, "-o", str(tmp_path / "bundle")])
    assert isinstance(result.exception, CheckpointError)  # `command.run` converts it to exit code 2
    assert result.exception.exit_code == 2
    assert "fetch --only tokenizer" in str(result.exception)
    assert "lacks tensors of denoiser" in str(result.exception)  # the files have tiny sizes
    assert not list(tmp_path.iterdir())


def test_command_writes_bundle_and_lists_unused_tensors(official, tmp_path, monkeypatch):
    monkeypatch.setattr("foley_export.cli.PAPER", TINY)
    options = [word for option, path in official.checkpoints.items() for word in (option, str(path))]
    options += ["--tokenizer", str(official.tokenizer), "-o", str(tmp_path / "bundle")]
    result = CliRunner().invoke(app, ["import", *options])
    assert result.exit_code == 0, result.output
    assert "rms2sound.pth: unused: " in result.stderr
    assert "2 x EMA copies" in result.stderr
    bundles.verify(bundles.read(tmp_path / "bundle"))
