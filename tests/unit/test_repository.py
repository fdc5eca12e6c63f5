"""The generated model repository matches the contract and the bundle, and its ensembles are consistent."""

import shutil
from pathlib import Path

import pytest
from tritonclient.grpc import model_config_pb2

from foley.bundle import MANIFEST, TOKENIZER, Bundle, graph_file, read, weights_file
from foley.errors import BundleError, SettingError
from foley.manifest import Manifest
from foley.stages import Stage, networks, stages
from foley_export.presets import DEMO, PAPER, TINY
from foley_server.launcher.model_config import DATA_TYPES, ENSEMBLES, INSTANCES, QUEUE_DELAY_US
from foley_server.launcher.repository import lay_out
from harness.models import REPOSITORY, read_config, replace_model, served

STAGES = stages(PAPER)


def assert_matches(config: model_config_pb2.ModelConfig, stage: Stage) -> None:
    """Assert that `config` matches the contract of `stage`."""
    assert config.name == stage.name
    assert config.max_batch_size == stage.max_batch
    assert config.model_transaction_policy.decoupled == stage.decoupled
    assert (config.platform == "ensemble") == (stage.kind == "ensemble")
    for configured, tensors in ((config.input, stage.inputs), (config.output, stage.outputs)):
        configured_tensors = [(t.name, t.data_type, list(t.dims)) for t in configured]
        assert configured_tensors == [
            (t.name, DATA_TYPES[t.dtype], [-1 if isinstance(size, str) else size for size in t.shape]) for t in tensors
        ]


def test_scheduling_tables_match_stages():
    assert set(ENSEMBLES) == {name for name, stage in STAGES.items() if stage.kind == "ensemble"}
    assert set(INSTANCES) | set(QUEUE_DELAY_US) <= set(STAGES) - set(ENSEMBLES)


@pytest.mark.parametrize("preset", [PAPER, TINY], ids=lambda preset: preset.name)
@pytest.mark.parametrize("name", ENSEMBLES)
def test_ensemble_steps_are_fully_connected(tmp_path, name, preset):
    folder = lay_out(REPOSITORY, fake_bundle(tmp_path / "bundle", preset), tmp_path / "models")
    table = stages(preset)
    ensemble = table[name]
    # tensor inside the ensemble -> (dtype, shape, with the names of variable dimensions)
    known = {tensor.name: (tensor.dtype, tensor.shape) for tensor in ensemble.inputs}
    used = set()
    for step in read_config(folder / name).ensemble_scheduling.step:
        stage = table[step.model_name]
        assert stage.max_batch >= ensemble.max_batch
        assert bool(stage.max_batch) == bool(ensemble.max_batch)
        assert not stage.decoupled
        assert set(step.input_map) == {tensor.name for tensor in stage.inputs}
        for tensor in stage.inputs:
            value = step.input_map[tensor.name]
            assert known[value] == (tensor.dtype, tensor.shape), f"{name}: {value} -> {stage.name}.{tensor.name}"
            used.add(value)
        # all of them: in Triton 24.10, an ensemble that drops outputs of a step can fail
        assert set(step.output_map) == {tensor.name for tensor in stage.outputs}
        for tensor in stage.outputs:
            value = step.output_map[tensor.name]
            assert value not in known, f"{name}: {value} is made twice"
            known[value] = (tensor.dtype, tensor.shape)
    for tensor in ensemble.outputs:
        assert known[tensor.name] == (tensor.dtype, tensor.shape)
    assert set(known) - used == {tensor.name for tensor in ensemble.outputs}  # every other tensor is used


def fake_bundle(root: Path, preset: Manifest, without: tuple[str, ...] = ()) -> Bundle:
    """Create a bundle whose manifest lists every file; laying out a repository does not read the files."""
    names = [file(stage) for stage in networks(preset) for file in (graph_file, weights_file)]
    listed = {name: "0" * 64 for name in (*names, TOKENIZER) if name not in map(graph_file, without)}
    root.mkdir()
    (root / MANIFEST).write_text(preset.model_copy(update={"files": listed}).model_dump_json())
    return read(root)


@pytest.mark.parametrize("preset", [PAPER, TINY], ids=lambda preset: preset.name)
def test_repository_matches_bundle(tmp_path, preset):
    bundle = fake_bundle(tmp_path / "bundle", preset)
    folder = lay_out(REPOSITORY, bundle, tmp_path / "models")
    assert {path.name for path in folder.iterdir()} == set(STAGES)
    for name, stage in stages(preset).items():
        config = read_config(folder / name)
        assert_matches(config, stage)
        files = [path.name for path in served(folder / name).iterdir()]
        if stage.kind == "ensemble":
            assert not config.parameters
            assert files == []
            continue
        parameters = {key: value.string_value for key, value in config.parameters.items()}
        assert parameters["bundle"] == str((tmp_path / "bundle").resolve())
        assert parameters["digest"] == bundle.digest
        assert Manifest.model_validate_json(parameters["manifest"]) == bundle.manifest
        assert files == ["model.py"]
        assert config.HasField("dynamic_batching") == (stage.max_batch > 0)  # batches steps of different requests
        assert [group.count for group in config.instance_group] == [2 if name == "generate" else 1]


def test_handwritten_models_are_copied_and_replace_networks(tmp_path):
    models = replace_model(tmp_path / "hand-written", "vocoder", "# replaced")
    folder = lay_out(models, fake_bundle(tmp_path / "bundle", TINY), tmp_path / "models")
    for name in ("generate", "tokenizer"):
        assert (served(folder / name) / "model.py").read_bytes() == (REPOSITORY / name / "1/model.py").read_bytes()
    assert (served(folder / "vocoder") / "model.py").read_text() == "# replaced"
    with pytest.raises(SettingError, match=r"nowhere/tokenizer/1/model.py; give the folder"):
        lay_out(tmp_path / "nowhere", fake_bundle(tmp_path / "other", TINY), tmp_path / "more")
    assert not (tmp_path / "more").exists()


@pytest.mark.parametrize("preset", [PAPER, DEMO], ids=lambda preset: preset.name)
def test_optical_flow_model_follows_bundle(tmp_path, preset):
    folder = lay_out(REPOSITORY, fake_bundle(tmp_path / "bundle", preset), tmp_path / "models")
    module = "network_model" if preset is PAPER else "dis_model"
    assert f"foley_server.backend.{module} " in (served(folder / "optical_flow") / "model.py").read_text()


def test_tiny_repository_has_tiny_dimensions(tmp_path):
    folder = lay_out(REPOSITORY, fake_bundle(tmp_path / "bundle", TINY), tmp_path / "models")
    assert list(read_config(folder / "rgb_features").output[0].dims) == [-1, 32]
    assert list(read_config(folder / "frames_to_features").output[1].dims) == [-1, 32]
    assert list(read_config(folder / "video2rms").input[0].dims) == [300, 64]


def test_missing_graphs_are_named(tmp_path):
    bundle = fake_bundle(tmp_path / "bundle", TINY, without=("vocoder", "clap_text"))
    with pytest.raises(BundleError, match=r"clap_text.*vocoder.*foley-export onnx"):
        lay_out(REPOSITORY, bundle, tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_version_of_models_identifies_what_affects_results(tmp_path):
    """Clients name it in every call, so that no other bundle answers."""

    def version(bundle, gpu=None):
        name = f"models-{len(list(tmp_path.iterdir()))}"
        folder = lay_out(REPOSITORY, bundle, tmp_path / name, gpu)
        (found,) = {served(folder / stage).name for stage in stages(bundle.manifest)}
        assert read_config(folder / "generate").parameters["version"].string_value == found
        return int(found)

    tiny = fake_bundle(tmp_path / "tiny", TINY)
    versions = [version(tiny), version(fake_bundle(tmp_path / "paper", PAPER))]
    assert len(set(versions)) == 2
    assert all(0 < one < 2**63 for one in versions)
    shutil.copytree(tmp_path / "tiny", tmp_path / "copy")
    assert version(read(tmp_path / "copy")) == versions[0]
